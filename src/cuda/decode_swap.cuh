/* SPDX-License-Identifier: MIT
 *
 * decode_swap.cuh - stage 3 on Hopper for tiles of ROWS = 8, 16 or 32 query rows, operands swapped.  Include with
 *     ROWS     8, 16, 32          KERNEL   the kernel's name
 *     MMA      MMA_BF16|MMA_FP16  PACK     pack_bf16|pack_fp16
 *     WGMMA    WGMMA_N<ROWS>_SS
 *
 * What      one CTA walks one part: per piece  S^T = K Q^T,  P^T = exp2(scale S^T - m),  O^T += V^T P^T
 * Why       wgmma computes 64 x N; with the cache as the 64-side, N is as small as the rows are: a tile of 64 tokens costs a
 *           quarter of the tensor work (and power) of 64 padded rows, and O^T of 16 rows fits 64 registers
 * Roles     warps 0-3 consume, warp 4 requests KV, warps 5-7 fetch q of the next piece; 4-7 then gather.cuh's watchers
 * Budgets   shared memory: 2 KV tiles 147,456 + 2 q tiles (32 rows: 73,728) + 2 P tiles 8,192 B; 1 CTA per SM
 * Bound by  DRAM: 2.2 us per tile when all SMs stream, about 1.2 us of work
 * Max       rows keep a reference maximum m; P is computed against it at once, and only when a score exceeds it by more
 *           than 2^8 do all warps agree (barrier with reduction) to raise it and rescale O.  P <= 256 is exact enough in
 *           16 bits because sums are fp32 and lse is taken with the m in use */

#define JS      (ROWS / 8) /* 8-column groups of an accumulator */
#define ACC     (ROWS / 2) /* registers of one 64 x ROWS accumulator */
#define COLS    (ROWS / 4) /* query rows that a thread holds */
#define Q_BYTES (QK_SLICES * ROWS * 128)
#define P_BYTES (ROWS * 128 < 1024 ? 1024 : ROWS * 128)

/* Column c of a thread, 0 <= c < COLS, is query row 8 (c / 2) + 2 (lane % 4) + c % 2; registers 4 (c / 2) + c % 2, + 2. */
#define COL_ROW(c) (8 * ((c) / 2) + 2 * (lane & 3) + (c) % 2)
#define COL_REG(c) (4 * ((c) / 2) + (c) % 2)

extern "C" __global__ void __launch_bounds__(SWAP_THREADS, 1)
    KERNEL(const __grid_constant__ struct decode_params p, const __grid_constant__ CUtensorMap map)
{
	extern __shared__ __align__(1024) uint8_t smem[];
	__shared__ __align__(8) uint64_t bar_full[2][GROUPS], bar_empty[2], bar_q_full[2], bar_q_empty[2], bar_ends[2],
	    bar_ahead[GROUPS];
	__shared__ struct schedule schedule;
	__shared__ __align__(16) float tops[ROWS][4], sums[ROWS][4]; /* of the tile, of the piece; by consumer warp */
	__shared__ float row_max[ROWS];                              /* later the row's lse */
	__shared__ struct row_end row_ends[2][ROWS];                 /* of the pieces whose q is in the two slots    */
	__shared__ int bad_tile[2];
	uint8_t *const kv_tile = smem, *const q_tile = smem + 2 * TILE_BYTES, *const p_tile = q_tile + 2 * Q_BYTES;

	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
	const int row_tile = blockIdx.x, kv_head = blockIdx.y, part = blockIdx.z;

	if (threadIdx.x == 0) {
		tma_prefetch_map(&map);
		for (int s = 0; s < 2; s++) {
			for (int g = 0; g < GROUPS; g++)
				mbar_init(smem_addr(&bar_full[s][g]), 1);
			mbar_init(smem_addr(&bar_empty[s]), 4);
			mbar_init(smem_addr(&bar_q_full[s]), 96);
			mbar_init(smem_addr(&bar_q_empty[s]), 4);
			mbar_init(smem_addr(&bar_ends[s]), ROWS);
			bad_tile[s] = 0;
		}
		for (int g = 0; g < GROUPS; g++)
			mbar_init(smem_addr(&bar_ahead[g]), 1);
		mbar_init_fence();
	}
	prefetch_inputs(p);
	struct walk walk;
	struct piece piece = {};
	struct first_box box = {};
	struct two_rows first_q;
	bool first_q_ready = false;
	if (warp == 4 && lane < GROUPS) {
		box.map = &map;
		box.slice = lane * GROUP_SLICES;
		box.dst = smem_addr(kv_tile) + lane * GROUP_SLICES * SLICE_BYTES;
		box.bar = smem_addr(&bar_ahead[lane]);
		box.bytes = GROUP_SLICES * SLICE_BYTES;
		box.mine = p.box_slices == GROUP_SLICES;
	}
	bool more = start_walk(p, part, row_tile, SPLIT_FINDER, schedule, walk, piece, [&](enum ahead what) {
		if (warp > 4 && what == LOAD && !p.cu_seqlens_q)
			first_q = fetch_q<ROWS, 96>(p, piece, kv_head, row_tile, threadIdx.x - 160, 0);
		if (what == CONFIRM)
			first_q_ready = !p.cu_seqlens_q;
		return warp == 4 && ask_ahead(p, piece, kv_head, box, what);
	});
	bool splits_known = false; /* find_splits() is done; consumers      */
	bool tell = false;         /* others wait for the last piece       */
	bool tiles_free = false;   /* no more tiles will be read; consumers */
	int tiles = 0, pieces = 0; /* counters of the two rings: slot = n & 1, parity from n >> 1 */

	if (warp == 4) { /* ---- KV producer ---- */
		const uint64_t policy = l2_evict_first();
		const bool sent = uniform((int)box.sent); /* the first tile is on its way */
		if (lane < GROUPS && !box.told)
			mbar_arrive(box.bar);
		for (; more; more = walk_next(p, walk, row_tile, piece)) {
#pragma unroll 1
			for (int block = piece.begin; block < piece.end; block++, tiles++) {
				const int slot = tiles & 1;
				if (sent && tiles == 0) {
					if (lane < GROUPS)
						mbar_arrive(smem_addr(&bar_full[0][lane]));
					continue;
				}
				const struct tile_place at = tile_place(p, piece, block);
				mbar_wait(smem_addr(&bar_empty[slot]), (tiles >> 1 & 1) ^ 1);
				load_tile(p, &map, piece, block, at, kv_head, smem_addr(kv_tile + slot * TILE_BYTES),
				          smem_addr(&bar_full[slot][0]), &bad_tile[slot], policy);
			}
		}
		grid_launch_dependents();
	} else if (warp > 4) { /* ---- q loader ---- */
		const int thread = threadIdx.x - 160;
		for (; more; more = walk_next(p, walk, row_tile, piece), pieces++) {
			const int slot = pieces & 1;
			mbar_wait(smem_addr(&bar_q_empty[slot]), (pieces >> 1 & 1) ^ 1);
			if (piece.begin < piece.end)
				load_q<ROWS, 96>(p, piece, kv_head, row_tile, q_tile + slot * Q_BYTES, thread, first_q,
				                 pieces == 0 && first_q_ready);
			fence_async_proxy();
			mbar_arrive(smem_addr(&bar_q_full[slot]));
			if (thread < ROWS) {
				row_ends[slot][thread] = row_end(p, piece, kv_head, row_tile, thread);
				mbar_arrive(smem_addr(&bar_ends[slot]));
			}
			if (pieces == 0 && warp == 7)
				publish_splits(p, schedule);
		}
		if (pieces == 0 && warp == 7)
			publish_splits(p, schedule);
	} else { /* ---- consumers ---- */
		for (; more; more = walk_next(p, walk, row_tile, piece), pieces++) {
			float o[V_SLICES][ACC], m[COLS], l[COLS];
			bool poisoned = false;
#pragma unroll
			for (int v = 0; v < V_SLICES; v++)
#pragma unroll
				for (int i = 0; i < ACC; i++)
					o[v][i] = 0;
#pragma unroll
			for (int c = 0; c < COLS; c++) {
				m[c] = -FLT_MAX;
				l[c] = 0;
			}
			const struct bounds see = piece_bounds(p, piece);
			mbar_wait(smem_addr(&bar_q_full[pieces & 1]), pieces >> 1 & 1);

#pragma unroll 1
			for (int block = piece.begin; block < piece.end; block++, tiles++) {
				const int slot = tiles & 1, parity = tiles >> 1 & 1, first = block * BLOCK;
				uint8_t *const tile = kv_tile + slot * TILE_BYTES;
				const uint32_t p_addr = smem_addr(p_tile + slot * P_BYTES);
				const uint64_t k_desc = uniform(desc_k_major(smem_addr(tile)));
				const uint64_t p_desc = uniform(desc_k_major(p_addr));
				/* In the loop, so that its sums with 36 offsets are not kept in registers (255 and a spill otherwise). */
				const uint64_t q_desc = uniform(desc_k_major(smem_addr(q_tile + (pieces & 1) * Q_BYTES)));
				float s[ACC];
				/* Without a rope part (d_qk 512) the ninth slice of q is zero and meets the first slice of K. */
				const uint64_t rope = p.slices == QK_SLICES ? DESC(V_SLICES * SLICE_BYTES) : 0;

				/* 1. S^T = K Q^T, group by group as it lands. */
#pragma unroll
				for (int g = 0; g < GROUPS; g++) {
					if (tiles == 0)
						mbar_wait(smem_addr(&bar_ahead[g]), 0);
					mbar_wait(smem_addr(&bar_full[slot][g]), parity);
					wgmma_fence();
#pragma unroll
					for (int i = 0; i < GROUP_SLICES; i++) {
						const int slice = g * GROUP_SLICES + i;
#pragma unroll
						for (int k = 0; k < 4; k++)
							WGMMA(MMA, s,
							      k_desc + (slice == V_SLICES ? rope : DESC(slice * SLICE_BYTES)) + DESC(32 * k),
							      q_desc + DESC(slice * ROWS * 128 + 32 * k), (slice | k) != 0, 0, 0);
					}
				}
				wgmma_commit();
				WGMMA_WAIT(0);
				poisoned |= lane == 0 && bad_tile[slot]; /* read by the lane that frees the tile */

				/* 2. Scale and mask; unused rows of V become zeros. */
				float x[ACC];
#pragma unroll
				for (int i = 0; i < ACC; i++)
					x[i] = s[i] * p.scale_log2;
				if (first < see.all_lo || first + BLOCK > see.all_hi) {
					const int t = first + 16 * warp + (lane >> 2);
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						const struct span row = visible(p, piece, (row_tile * ROWS + COL_ROW(c)) / p.group);
						if (t < row.lo || t >= row.hi)
							x[COL_REG(c)] = -INFINITY;
						if (t + 8 < row.lo || t + 8 >= row.hi)
							x[COL_REG(c) + 2] = -INFINITY;
					}
					if (first < see.any_lo || first + BLOCK > piece.len)
						zero_rows(tile, see.any_lo - first, piece.len - first, threadIdx.x, 128);
				}

				/* 3. P against the reference maximum, stored as [row][token] for V^T P^T. */
				bool raise = block == piece.begin; /* there is no reference yet */
				float e[ACC], sum[COLS];
				if (!raise) {
					bool grew = false;
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						grew |= fmaxf(x[COL_REG(c)], x[COL_REG(c) + 2]) > m[c] + 8.0f;
						e[COL_REG(c)] = exp2_approx(x[COL_REG(c)] - m[c]);
						e[COL_REG(c) + 2] = exp2_approx(x[COL_REG(c) + 2] - m[c]);
						sum[c] = e[COL_REG(c)] + e[COL_REG(c) + 2];
					}
#pragma unroll
					for (int j = 0; j < JS; j++)
						store_matrix_x2_trans(p_addr + swizzled(8 * j + (lane & 7), 2 * warp + (lane >> 3 & 1)),
						                      PACK(e[4 * j], e[4 * j + 1]), PACK(e[4 * j + 2], e[4 * j + 3]));
					fence_async_proxy();
					raise = barrier_or(1, 128, grew);
				}
				if (raise) {
					/* 3b. Raise all references to the true maximum so far and rescale. */
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						float top = fmaxf(x[COL_REG(c)], x[COL_REG(c) + 2]);
						top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 4));
						top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 8));
						top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 16));
						if (lane < 4)
							tops[COL_ROW(c)][warp] = top;
					}
					named_barrier(1, 128);
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						const float4 top = *(const float4 *)tops[COL_ROW(c)];
						const float raised = fmaxf(m[c], fmaxf(fmaxf(top.x, top.y), fmaxf(top.z, top.w)));
						const float factor = exp2_approx(m[c] - raised);
						m[c] = raised;
						l[c] *= factor;
						e[COL_REG(c)] = exp2_approx(x[COL_REG(c)] - raised);
						e[COL_REG(c) + 2] = exp2_approx(x[COL_REG(c) + 2] - raised);
						sum[c] = e[COL_REG(c)] + e[COL_REG(c) + 2];
#pragma unroll
						for (int v = 0; v < V_SLICES; v++) {
							o[v][COL_REG(c)] *= factor;
							o[v][COL_REG(c) + 2] *= factor;
						}
					}
#pragma unroll
					for (int j = 0; j < JS; j++)
						store_matrix_x2_trans(p_addr + swizzled(8 * j + (lane & 7), 2 * warp + (lane >> 3 & 1)),
						                      PACK(e[4 * j], e[4 * j + 1]), PACK(e[4 * j + 2], e[4 * j + 3]));
					fence_async_proxy();
					named_barrier(1, 128);
				}

				/* 4. O^T += V^T P^T, 64 dims of V at a time. */
				wgmma_fence();
#pragma unroll
				for (int k = 0; k < 4; k++)
#pragma unroll
					for (int v = 0; v < V_SLICES; v++)
						WGMMA(MMA, o[v], k_desc + V_DESC + DESC(v * SLICE_BYTES + 2048 * k), p_desc + DESC(32 * k), 1,
						      1, 0);
				wgmma_commit();
#pragma unroll
				for (int c = 0; c < COLS; c++)
					l[c] += sum[c];
				WGMMA_WAIT(0);
				if (lane == 0)
					mbar_arrive(smem_addr(&bar_empty[slot]));
			}

			tiles_free = !walk_goes_on(walk);
			if (tiles_free)
				named_barrier_arrive(TILES_FREE, SWAP_THREADS);

			/* 5. The piece's result: normalised rows to out or to the partial slot. */
			const struct row_end *const ends = row_ends[pieces & 1];
			mbar_wait(smem_addr(&bar_ends[pieces & 1]), pieces >> 1 & 1);
			const bool empty = piece.begin == piece.end;
			if (!empty) {
#pragma unroll
				for (int c = 0; c < COLS; c++) {
					l[c] += __shfl_xor_sync(0xffffffff, l[c], 4);
					l[c] += __shfl_xor_sync(0xffffffff, l[c], 8);
					l[c] += __shfl_xor_sync(0xffffffff, l[c], 16);
					if (lane < 4) {
						sums[COL_ROW(c)][warp] = l[c];
						row_max[COL_ROW(c)] = m[c]; /* the same in all warps */
					}
				}
				named_barrier(1, 128); /* sums are written again only after a barrier of the next piece's first tile */
#pragma unroll
				for (int c = 0; c < COLS; c++)
					l[c] = add_four(sums[COL_ROW(c)]);
			}
			poisoned = __shfl_sync(0xffffffff, poisoned, 0);
#pragma unroll
			for (int c = 0; c < COLS; c++) /* from now on, what to multiply the row by */
				l[c] = row_scale(l[c], poisoned);
			if (p.attn_sink && piece.slot < 0 && !empty) {
#pragma unroll
				for (int c = 0; c < COLS; c++)
					l[c] *= sink_factor(ends[COL_ROW(c)].sink, row_lse(m[c], add_four(sums[COL_ROW(c)]), poisoned));
			}
			if (piece.slot >= 0) {
#pragma unroll
				for (int c = 0; c < COLS; c++) {
					float *const out = (float *)ends[COL_ROW(c)].out;
					if (out) {
						float *const at = out + 16 * warp + (lane >> 2);
#pragma unroll
						for (int v = 0; v < V_SLICES; v++) {
							at[64 * v] = o[v][COL_REG(c)] * l[c];
							at[64 * v + 8] = o[v][COL_REG(c) + 2] * l[c];
						}
					}
				}
			} else {
#pragma unroll
				for (int j = 0; j < JS; j++) { /* 8 dims x 8 rows at a time, transposed within the warp */
					uint16_t *const out = (uint16_t *)ends[8 * j + (lane >> 2)].out;
					uint16_t *const at = out + 16 * warp + 2 * (lane & 3);
					uint32_t two[2 * V_SLICES];
#pragma unroll
					for (int i = 0; i < 2 * V_SLICES; i++)
						two[i] = transpose_8x8(PACK(o[i / 2][4 * j + 2 * (i % 2)] * l[2 * j],
						                            o[i / 2][4 * j + 2 * (i % 2) + 1] * l[2 * j + 1]));
					if (out && p.out_aligned) {
#pragma unroll
						for (int i = 0; i < 2 * V_SLICES; i++)
							*(uint32_t *)(at + 64 * (i / 2) + 8 * (i % 2)) = two[i];
					} else if (out) {
#pragma unroll
						for (int i = 0; i < 2 * V_SLICES; i++)
							store_two(p, at + 64 * (i / 2) + 8 * (i % 2), two[i]);
					}
				}
			}
			if (threadIdx.x < ROWS) {
				const float lse = row_lse(row_max[threadIdx.x], empty ? 0.0f : add_four(sums[threadIdx.x]), poisoned);
				store_lse(p, piece, ends[threadIdx.x], lse);
				row_max[threadIdx.x] = lse;
			}
			tell = piece.slot >= 0 && p.costs.chunk == 0;
			if (tell && !tiles_free) {
				consumers_meet(splits_known);
				if (warp == 0) {
					uint64_t was[MAX_ENTRIES / 32];
					announce(p, schedule.split[piece.slot & 1], kv_head, row_tile, piece.slot & 1, part, row_max, NULL,
					         was);
					adopt(schedule, piece.slot & 1, was);
				}
				tell = false;
			}
			__syncwarp();
			if (lane == 0)
				mbar_arrive(smem_addr(&bar_q_empty[pieces & 1]));
		}
	}

	/* 6. Tell the others of the last piece, here, where nothing waits for the answer.  Then this CTA's shares of the split
	 * requests at its part's borders, over the tiles. */
	uint64_t was[MAX_ENTRIES / 32] = {0};
	if (warp < 4) {
		if (!tiles_free)
			named_barrier_arrive(TILES_FREE, SWAP_THREADS);
		consumers_meet(splits_known);
	} /* the others learn of the splits with TILES_FREE */
	if (warp == 0 && tell)
		announce(p, schedule.split[piece.slot & 1], kv_head, row_tile, piece.slot & 1, part, row_max, NULL, was);
	gather_all<PACK, 4, SWAP_THREADS>(p, schedule, part, kv_head, row_tile, was, piece.slot & 1, (int)threadIdx.x - 128,
	                                  threadIdx.x, smem, 2 * TILE_BYTES);
}

#undef JS
#undef ACC
#undef COLS
#undef Q_BYTES
#undef P_BYTES
#undef COL_ROW
#undef COL_REG
#undef ROWS
#undef KERNEL
#undef MMA
#undef PACK
#undef WGMMA
