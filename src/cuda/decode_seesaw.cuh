/* SPDX-License-Identifier: MIT
 *
 * decode_seesaw.cuh - stage 3 on Hopper for tiles of 64 query rows.  Include with
 *     KERNEL  the kernel's name     MMA  MMA_BF16|MMA_FP16     PACK  pack_bf16|pack_fp16
 *
 * What      one CTA walks one part, two KV tiles A and B a turn:  S = Q K^T,  P = exp2(scale S - m),  O += P V.
 *           Each of two warpgroups keeps half of O (64 x 256); warpgroup 0 computes S of A, warpgroup 1 S of B, and the
 *           P of one goes to the other through shared memory (the "seesaw" of FlashMLA's kernel notes, 2025-04-22)
 * Turn      warpgroup 0:  S_A   softmax A   O_l += P_A V_A,l   wait P_B   O_l += P_B V_B,l
 *           warpgroup 1:  S_B   wait P_A    O_r += P_A V_A,r   softmax B  O_r += P_B V_B,r
 *           one group's softmax runs under the other's products, A's under S_B, B's under P_A V_A.  S takes the half
 *           of the tile first that its own group frees: it is there earlier
 * Max       P is computed against a reference that stays as it is unless a score exceeds it by more than 2^8; it
 *           travels with P from group to group, and whoever finds it raised rescales its half of O.  P <= 256 is exact
 *           enough in 16 bits because sums are fp32 and lse is taken with the reference in use
 * P         of a tile is stored over the rope slice of its own K, which is dead once S is there
 * Roles     warpgroups 0 and 1 consume; warps 8-10 request the left half, the right half and the rope of each tile;
 *           warp 11 copies q of the next piece; all four then gather.cuh's watchers
 * Cluster   of the CTAs of two row tiles (p.cluster 2): each requests half of a tile for both, a slot is free when both
 *           have freed it
 * Budgets   registers 224 / 224 / 56; shared memory q 73,728 + 2 tiles 147,456 B; 1 CTA per SM
 * Bound by  tensor cores: 2176 clk per tile */

#define ROWS         64
#define Q_BYTES      TILE_BYTES
#define HALF_V       DESC(V_SLICES / 2 * SLICE_BYTES)
#define SPLIT_FINDER 352 /* a thread of the q loader, which is idle at first */

/* S = Q K^T of one tile, as its parts land, left or right half first; not complete on return. */
DEV void KERNEL_FN(scores)(float (&s)[32], uint64_t q_desc, uint64_t k_desc, uint64_t rope, uint32_t full, int parity,
                           bool right_first)
{
#pragma unroll
	for (int n = LEFT; n < BARS; n++) {
		const int bar = n == ROPE || !right_first ? n : n ^ RIGHT;
		mbar_wait(full + 8 * bar, parity);
		wgmma_fence();
#pragma unroll
		for (int i = 0; i < (bar == ROPE ? 1 : V_SLICES / 2); i++) {
			const int slice = bar * (V_SLICES / 2) + i;
#pragma unroll
			for (int k = 0; k < 4; k++)
				WGMMA_N64_SS(MMA, s, q_desc + DESC(slice * SLICE_BYTES + 32 * k),
				             k_desc + (slice == V_SLICES ? rope : DESC(slice * SLICE_BYTES)) + DESC(32 * k),
				             (n | i | k) != 0, 0, 0);
		}
	}
	wgmma_commit();
}

/* P = exp2(scale s - m) as A fragments of wgmma; sum: of this thread's share of the rows. */
DEV void KERNEL_FN(exponentials)(const float (&s)[32], float scale, const float (&m)[2], uint32_t (&pk)[16],
                                 float (&sum)[2])
{
	sum[0] = sum[1] = 0;
#pragma unroll
	for (int i = 0; i < 16; i++) {
		const float a = exp2_approx(fmaf(s[2 * i], scale, -m[i & 1])),
		            b = exp2_approx(fmaf(s[2 * i + 1], scale, -m[i & 1]));
		sum[i & 1] += a + b;
		pk[i] = PACK(a, b);
	}
}

/* O += P V, P in registers or in shared memory; not complete on return. */
DEV void KERNEL_FN(pv_registers)(float (&o)[128], const uint32_t (&pk)[16], uint64_t v_desc)
{
#pragma unroll
	for (int k = 0; k < 4; k++)
		WGMMA_N256_RS(MMA, o, pk + 4 * k, v_desc + DESC(2048 * k), 1, 1);
	wgmma_commit();
}

DEV void KERNEL_FN(pv_shared)(float (&o)[128], uint64_t p_desc, uint64_t v_desc)
{
#pragma unroll
	for (int k = 0; k < 4; k++)
		WGMMA_N256_SS(MMA, o, p_desc + DESC(32 * k), v_desc + DESC(2048 * k), 1, 0, 1);
	wgmma_commit();
}

/* Half of a row of O, normalised, to out or to a partial (half: of 16-bit values, full: of floats); o: the registers of this
 * row, 4 apart in pairs.  The four lanes of a row trade registers first, so that each writes 16 bytes at a time. */
DEV void KERNEL_FN(store_row)(const struct decode_params &p, bool half, bool full, void *out, float norm, int group,
                              const float *o)
{
	const int quad = threadIdx.x & 3, column = group * (D_V / 2);
	if (full) {
#pragma unroll
		for (int i = 0; i < 32; i += 2) { /* 16 columns: lanes 0, 2 take the first eight, 1, 3 the others */
			float a = o[4 * i] * norm, b = o[4 * i + 1] * norm, c = o[4 * i + 4] * norm, d = o[4 * i + 5] * norm;
			trade(quad & 1, 1, a, c);
			trade(quad & 1, 1, b, d);
			if (out)
				*(float4 *)((float *)out + column + 8 * (i + (quad & 1)) + 4 * (quad >> 1)) = make_float4(a, b, c, d);
		}
		return;
	}
#pragma unroll
	for (int i = 0; i < 32; i += 4) { /* 32 columns, eight a lane */
		uint32_t w[4];
#pragma unroll
		for (int k = 0; k < 4; k++)
			w[k] = half ? pack_fp16(o[4 * (i + k)] * norm, o[4 * (i + k) + 1] * norm)
			            : PACK(o[4 * (i + k)] * norm, o[4 * (i + k) + 1] * norm);
		trade(quad & 1, 1, w[0], w[1]);
		trade(quad & 1, 1, w[2], w[3]);
		trade(quad >> 1, 2, w[0], w[2]);
		trade(quad >> 1, 2, w[1], w[3]);
		uint16_t *const at = (uint16_t *)out + column + 8 * (i + quad);
		if (out && (half || p.out_aligned)) {
			*(uint4 *)at = make_uint4(w[0], w[1], w[2], w[3]);
		} else if (out) {
#pragma unroll
			for (int k = 0; k < 4; k++) {
				at[2 * k] = (uint16_t)w[k];
				at[2 * k + 1] = (uint16_t)(w[k] >> 16);
			}
		}
	}
}

extern "C" __global__ void __launch_bounds__(SEESAW_THREADS, 1)
    KERNEL(const __grid_constant__ struct decode_params p, const __grid_constant__ struct kv_maps maps)
{
	extern __shared__ __align__(1024) uint8_t smem[];
	__shared__ __align__(8) uint64_t bar_full[2][BARS], bar_empty[2][BARS], bar_q_full, bar_q_empty, bar_p[2];
	__shared__ struct schedule schedule;
	__shared__ float reference[2][ROWS], row_max[ROWS] /* later the row's lse */, row_sum[2][ROWS], row_norm[ROWS];
	__shared__ uint32_t row_scales[ROWS];
	__shared__ void *row_ptr[ROWS];
	__shared__ int bad_tile[2];
	uint8_t *const q_tile = smem, *const kv_tile = smem + Q_BYTES;

	const int group = threadIdx.x >> 7, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
	const int row_tile = blockIdx.x, kv_head = blockIdx.y, part = blockIdx.z;
	const int rank = row_tile & (p.cluster - 1), pair = row_tile - rank; /* a cluster is row tiles pair, pair + 1 */

	if (threadIdx.x == 0) {
		tma_prefetch_map(&maps.group);
		tma_prefetch_map(&maps.slice);
		for (int s = 0; s < 2; s++)
			for (int i = 0; i < BARS; i++) {
				mbar_init(smem_addr(&bar_full[s][i]), 1);
				mbar_init(smem_addr(&bar_empty[s][i]), 4 * p.cluster);
			}
		mbar_init(smem_addr(&bar_q_full), 32);
		mbar_init(smem_addr(&bar_q_empty), 8);
		mbar_init(smem_addr(&bar_p[0]), 4);
		mbar_init(smem_addr(&bar_p[1]), 4);
		mbar_init_fence();
	}
	if (p.cluster > 1)
		cluster_arrive(); /* the peer's barriers are there before anything is sent to them */
	struct walk walk;
	struct piece piece = {};
	bool more = start_walk(p, part, pair, SPLIT_FINDER, schedule, walk, piece, [](enum ahead) { return false; });
	if (p.cluster > 1)
		cluster_wait();

	int tiles = 0, pieces = 0; /* tile n lies in slot n & 1, parity from n >> 1 */
	int turns = 0;             /* bits 0, 1, 2: parity of bar_p[0], bar_p[1], bar_q_full */

	if (group == 2) {
		SETMAXNREG_DEC(56);
		if (warp < 11) { /* ---- KV producers, a warp for each of LEFT, RIGHT, ROPE ---- */
			const struct share share = share_of(p, maps, warp - 8, rank);
			const struct slots slots = {kv_tile, bar_full, bar_empty, bad_tile};
			for (; more; more = walk_next(p, walk, pair, piece)) {
				if (p.box_slices > 1)
					load_tiles(p, piece, kv_head, share, slots, tiles);
				else
					load_boxes(p, piece, kv_head, share, slots, tiles);
			}
			grid_launch_dependents();
		} else { /* ---- q loader: from the second piece on ---- */
			if (lane == 0)
				find_splits(p, schedule);
			__syncwarp();
			named_barrier_arrive(FIRST_READY, 288);
			for (; more; more = walk_next(p, walk, pair, piece)) {
				if (piece.begin == piece.end || pieces++ == 0)
					continue;
				mbar_wait(smem_addr(&bar_q_empty), pieces & 1);
				copy_q<ROWS, 32>(p, piece, kv_head, row_tile, q_tile, lane);
				fence_async_proxy();
				mbar_arrive(smem_addr(&bar_q_full));
			}
		}
		/* Then the group waits for what the other CTAs of its split requests bring. */
		const uint64_t told_nothing[MAX_ENTRIES / 32] = {0};
		__syncwarp();
		if (p.cluster > 1)
			cluster_arrive();
		gather_all<PACK, 8, SEESAW_THREADS>(p, schedule, part, kv_head, row_tile, told_nothing, 0, threadIdx.x - 256,
		                                    -1, kv_tile, 2 * TILE_BYTES);
		if (p.cluster > 1)
			cluster_wait();
		return;
	}

	/* ---- consumers ---- */
	SETMAXNREG_INC(224);
	const int warp_row = 16 * (warp & 3), row = warp_row + (lane >> 2); /* the thread's rows: row, row + 8 */
	/* Without a rope part (d_qk 512) the ninth slice of q is zero and meets the first slice of K. */
	const uint64_t rope = p.slices == QK_SLICES ? DESC(V_SLICES * SLICE_BYTES) : 0;
	enum { BUSY, TILES_DONE, UNTOLD } end_of_part = BUSY; /* UNTOLD: and others wait for the last piece */
	for (; more; more = walk_next(p, walk, pair, piece)) {
		float o[128], m[2] = {-FLT_MAX, -FLT_MAX}, l[2] = {0, 0};
		bool poisoned = false;
#pragma unroll
		for (int i = 0; i < 128; i++)
			o[i] = 0;
		const struct bounds see = piece_bounds(p, piece);
		const int begin = __shfl_sync(0xffffffff, piece.begin, 0),
		          end = __shfl_sync(0xffffffff, piece.end, 0); /* uniform */
		if (begin < end && tiles == 0) {                       /* nothing to overlap with: by all */
			copy_q<ROWS, 256>(p, piece, kv_head, row_tile, q_tile, threadIdx.x);
			fence_async_proxy();
			named_barrier(FIRST_READY, 288); /* and the q loader knows the splits */
		} else if (begin < end) {
			mbar_wait(smem_addr(&bar_q_full), turns >> 2 & 1);
			turns ^= 4;
		}

#pragma unroll 1
		for (int block = begin; block < end; block += 2) {
			const bool has_b = block + 1 < end, last = block + 2 >= end;
			const int slot_a = tiles & 1, slot_b = slot_a ^ 1;
			const int parity_a = tiles >> 1 & 1, parity_b = (tiles + 1) >> 1 & 1;
			const uint32_t addr_a = smem_addr(kv_tile + slot_a * TILE_BYTES),
			               addr_b = smem_addr(kv_tile + slot_b * TILE_BYTES);
			/* In the loop, so that sums of descriptors and offsets are not kept in registers across turns. */
			const uint64_t q_desc = uniform(desc_k_major(smem_addr(q_tile)));
			const uint64_t desc_a = uniform(desc_k_major(addr_a)), desc_b = uniform(desc_k_major(addr_b));
			const uint64_t p_a = desc_a + DESC(V_SLICES * SLICE_BYTES), p_b = desc_b + DESC(V_SLICES * SLICE_BYTES);
			tiles += has_b ? 2 : 1;
			float s[32], r[2], top[2], sum[2];
			uint32_t pk[16];

			if (group == 0) {
				const int first = block * BLOCK;
				KERNEL_FN(scores)(s, q_desc, desc_a, rope, smem_addr(&bar_full[slot_a][0]), parity_a, false);
				WGMMA_WAIT(0);
				poisoned |= lane == rank && bad_tile[slot_a]; /* read by the lane that frees the slot */
				if (last && lane == 0)
					mbar_arrive(smem_addr(&bar_q_empty));
				const float scale =
				    settle_scores(p, piece, see, row_tile * ROWS + row, first, kv_tile + slot_a * TILE_BYTES, s, top);
				references(top, m, r);
				raise(o, l, m, r);
				KERNEL_FN(exponentials)(s, scale, m, pk, sum);
				named_barrier(1, 128); /* all warps are done with the rope slice, and with zeroing */
				store_p(addr_a + V_SLICES * SLICE_BYTES, warp_row, pk);
				store_reference(reference[0], row, m);
				hand_over(smem_addr(&bar_p[0]));
				wgmma_fence();
				KERNEL_FN(pv_registers)(o, pk, desc_a + V_DESC);
				l[0] += sum[0], l[1] += sum[1];
				WGMMA_WAIT(0);
				if (lane < p.cluster)
					mbar_arrive_cluster(smem_addr(&bar_empty[slot_a][LEFT]), lane);
				if (has_b) {
					mbar_wait(smem_addr(&bar_p[1]), turns >> 1 & 1);
					r[0] = reference[1][row], r[1] = reference[1][row + 8];
					raise(o, l, m, r);
					wgmma_fence();
					KERNEL_FN(pv_shared)(o, p_b, desc_b + V_DESC);
					WGMMA_WAIT(0);
					if (lane < p.cluster) {
						mbar_arrive_cluster(smem_addr(&bar_empty[slot_b][LEFT]), lane);
						mbar_arrive_cluster(smem_addr(&bar_empty[slot_b][ROPE]), lane);
					}
				}
			} else if (has_b) {
				const int first = (block + 1) * BLOCK;
				KERNEL_FN(scores)(s, q_desc, desc_b, rope, smem_addr(&bar_full[slot_b][0]), parity_b, true);
				WGMMA_WAIT(0);
				poisoned |= lane == rank && bad_tile[slot_b]; /* read by the lane that frees the slot */
				if (last && lane == 0)
					mbar_arrive(smem_addr(&bar_q_empty));
				const float scale =
				    settle_scores(p, piece, see, row_tile * ROWS + row, first, kv_tile + slot_b * TILE_BYTES, s, top);
				mbar_wait(smem_addr(&bar_p[0]), turns & 1);
				r[0] = reference[0][row], r[1] = reference[0][row + 8];
				raise(o, l, m, r);
				wgmma_fence();
				KERNEL_FN(pv_shared)(o, p_a, desc_a + V_DESC + HALF_V);
				references(top, m, r);
				KERNEL_FN(exponentials)(s, scale, r, pk, sum);
				named_barrier(2, 128);
				store_p(addr_b + V_SLICES * SLICE_BYTES, warp_row, pk);
				store_reference(reference[1], row, r);
				hand_over(smem_addr(&bar_p[1]));
				WGMMA_WAIT(0);
				if (lane < p.cluster) {
					mbar_arrive_cluster(smem_addr(&bar_empty[slot_a][RIGHT]), lane);
					mbar_arrive_cluster(smem_addr(&bar_empty[slot_a][ROPE]), lane);
				}
				raise(o, l, m, r);
				wgmma_fence();
				KERNEL_FN(pv_registers)(o, pk, desc_b + V_DESC + HALF_V);
				l[0] += sum[0], l[1] += sum[1];
				WGMMA_WAIT(0);
				if (lane < p.cluster)
					mbar_arrive_cluster(smem_addr(&bar_empty[slot_b][RIGHT]), lane);
			} else {
				if (lane == 0)
					mbar_arrive(smem_addr(&bar_q_empty));
				mbar_wait(smem_addr(&bar_p[0]), turns & 1);
				r[0] = reference[0][row], r[1] = reference[0][row + 8];
				raise(o, l, m, r);
				wgmma_fence();
				KERNEL_FN(pv_shared)(o, p_a, desc_a + V_DESC + HALF_V);
				WGMMA_WAIT(0);
				if (lane < p.cluster) {
					mbar_arrive_cluster(smem_addr(&bar_empty[slot_a][RIGHT]), lane);
					mbar_arrive_cluster(smem_addr(&bar_empty[slot_a][ROPE]), lane);
				}
			}
			turns ^= has_b ? 3 : 1;
		}
		const bool last_piece = !walk_goes_on(walk);
		if (last_piece)
			named_barrier_arrive(TILES_FREE, SEESAW_THREADS);

		/* The piece's result: normalised rows to out or to the partial slot.  One thread settles a row. */
		const float poison = __any_sync(0xffffffff, poisoned) ? NAN : 0.0f; /* reaches every row with its sum */
#pragma unroll
		for (int h = 0; h < 2; h++) {
			l[h] += __shfl_xor_sync(0xffffffff, l[h], 1);
			l[h] += __shfl_xor_sync(0xffffffff, l[h], 2);
			if ((lane & 3) == 0) {
				row_sum[group][row + 8 * h] = l[h] + poison;
				if (group == 0)
					row_max[row + 8 * h] = m[h]; /* both groups' */
			}
		}
		named_barrier(ROWS_SUMMED, 256);
		if (threadIdx.x < ROWS)
			row_max[threadIdx.x] = settle_row(p, piece, kv_head, row_tile, threadIdx.x, row_max[threadIdx.x],
			                                  row_sum[0][threadIdx.x] + row_sum[1][threadIdx.x], &row_norm[threadIdx.x],
			                                  &row_ptr[threadIdx.x]);
		named_barrier(ROWS_SETTLED, 256);
		const bool tell = piece.slot >= 0 && p.costs.chunk == 0;
		float norm[2] = {row_norm[row], row_norm[row + 8]};
#pragma unroll
		for (int h = 0; h < 2 && tell; h++)
			norm[h] = fit_16_bits(o + 2 * h, norm[h], (uint16_t *)&row_scales[row + 8 * h] + group);
		uint8_t *const first_row = (uint8_t *)row_ptr[warp_row];
		if (tell && last_piece) { /* q is not needed any more */
			if (first_row)        /* else none of the warp's rows is one */
				store_partial(o, norm, q_tile + warp * STAGE_BYTES, first_row + group * D_V);
		} else {
#pragma unroll
			for (int h = 0; h < 2; h++)
				KERNEL_FN(store_row)
			(p, tell, piece.slot >= 0 && !tell, row_ptr[row + 8 * h], norm[h], group, o + 2 * h);
		}
		if (last_piece) {
			end_of_part = tell ? UNTOLD : TILES_DONE;
		} else if (tell) {
			named_barrier(ROWS_SUMMED, 256);
			if (warp == 0) {
				uint64_t was[MAX_ENTRIES / 32];
				announce(p, schedule.split[piece.slot & 1], kv_head, row_tile, piece.slot & 1, part, row_max,
				         row_scales, was);
				adopt(schedule, piece.slot & 1, was);
			}
			named_barrier(ROWS_SETTLED, 256); /* an empty piece has no other before it writes row_max */
		}
	}
	if (end_of_part == BUSY) /* the last pieces have no rows here */
		named_barrier_arrive(TILES_FREE, SEESAW_THREADS);
	if (p.cluster > 1)
		cluster_arrive(); /* done with the peer's barriers */

	/* The last piece is told here.  Then this CTA's shares of the split requests at its part's borders, over the tiles. */
	uint64_t was[MAX_ENTRIES / 32] = {0};
	if (tiles == 0)
		named_barrier(FIRST_READY, 288);
	else
		named_barrier(ROWS_SETTLED, 256);
	if (warp == 7 && end_of_part == UNTOLD)
		announce(p, schedule.split[piece.slot & 1], kv_head, row_tile, piece.slot & 1, part, row_max, row_scales, was);
	gather_all<PACK, 8, SEESAW_THREADS>(p, schedule, part, kv_head, row_tile, was, piece.slot & 1, -1, threadIdx.x,
	                                    kv_tile, 2 * TILE_BYTES);
	if (p.cluster > 1)
		cluster_wait(); /* until then the peer may still arrive on ours */
}

#undef ROWS
#undef Q_BYTES
#undef HALF_V
#undef SPLIT_FINDER
#undef KERNEL
#undef KERNEL_FN
#undef MMA
#undef PACK
