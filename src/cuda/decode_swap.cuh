/* SPDX-License-Identifier: MIT
 *
 * decode_swap.cuh - stage 3 on Hopper for tiles of ROWS = 8, 16 or 32 query rows, operands swapped.  Include with
 *     ROWS     8, 16, 32          KERNEL   the kernel's name
 *     MMA      MMA_BF16|MMA_FP16  PACK     pack_bf16|pack_fp16
 *     WGMMA    WGMMA_N<ROWS>_SS
 *
 * What      one CTA walks one part: per piece  S^T = K Q^T,  P^T = exp2(scale S^T - m),  O^T = V^T P^T
 * Why       wgmma computes 64 x N; with the cache as the 64-side, N is as small as the rows are: a tile of 64 tokens
 * costs a quarter of the tensor work (and power) of 64 padded rows, and O^T fits 64 (ROWS 16) registers Roles     warps
 * 0-3 consume, warp 4 requests KV, warps 5-7 fetch q of the next piece Budgets   shared memory: 2 KV tiles 147,456 + 2
 * q tiles (ROWS 32: 73,728) + 2 P tiles 8,192 B; 1 CTA per SM Bound by  DRAM: 2.24 us per tile when all SMs stream,
 * ~0.9 us of math Max       rows keep a reference maximum M; P is computed against it at once, and only when a score
 * exceeds M by more than 2^8 do all warps agree (barrier with reduction) to raise M and rescale O.  P <= 256 is exact
 * enough in 16 bits because sums are fp32 and lse is taken with the M in use */

#define JS      (ROWS / 8) /* 8-column groups of an accumulator */
#define ACC     (ROWS / 2) /* registers of one 64 x ROWS accumulator */
#define COLS    (ROWS / 4) /* query rows that a thread holds */
#define Q_BYTES (QK_SLICES * ROWS * 128)
#define P_BYTES (ROWS * 128 < 1024 ? 1024 : ROWS * 128)

/* Column c of a thread, 0 <= c < COLS, is query row 8 (c / 2) + 2 (lane % 4) + c % 2; registers 4 (c / 2) + c % 2, + 2.
 */
#define COL_ROW(c) (8 * ((c) / 2) + 2 * (lane & 3) + (c) % 2)
#define COL_REG(c) (4 * ((c) / 2) + (c) % 2)

extern "C" __global__ void __launch_bounds__(SWAP_THREADS, 1)
    KERNEL(const __grid_constant__ struct decode_params p, const __grid_constant__ CUtensorMap map)
{
	extern __shared__ __align__(1024) uint8_t smem[];
	__shared__ __align__(8) uint64_t bar_full[2][GROUPS], bar_empty[2], bar_q_full[2], bar_q_empty[2];
	__shared__ struct schedule schedule;
	__shared__ float exchange[4][ROWS];
	__shared__ int bad_tile[2];
	uint8_t *const kv_tile = smem, *const q_tile = smem + 2 * TILE_BYTES, *const p_tile = q_tile + 2 * Q_BYTES;

	const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
	const int row_tile = blockIdx.x % p.row_tiles, kv_head = blockIdx.x / p.row_tiles % p.h_kv;
	const int part = blockIdx.x / (p.row_tiles * p.h_kv);

	if (threadIdx.x == 0) {
		tma_prefetch_map(&map);
		for (int s = 0; s < 2; s++) {
			for (int g = 0; g < GROUPS; g++)
				mbar_init(smem_addr(&bar_full[s][g]), 1);
			mbar_init(smem_addr(&bar_empty[s]), 4);
			mbar_init(smem_addr(&bar_q_full[s]), 96);
			mbar_init(smem_addr(&bar_q_empty[s]), 4);
		}
		mbar_init_fence();
	}
	grid_wait();
	find_part(p, part, schedule);
	if (threadIdx.x == 0 && row_tile == 0 && kv_head == 0)
		p.splits[part] = schedule.split; /* for combine */

	struct walk walk = walk_begin(p, part, schedule.border);
	struct piece piece;
	int tiles = 0, pieces = 0; /* counters of the two rings: slot = n & 1, parity from n >> 1 */

	if (warp == 4) { /* ---- KV producer ---- */
		const uint64_t policy = p.evict_first ? l2_evict_first() : l2_evict_normal();
		while (walk_next(p, walk, row_tile, piece)) {
			for (int block = piece.begin; block < piece.end; block++, tiles++) {
				const int slot = tiles & 1;
				mbar_wait(smem_addr(&bar_empty[slot]), (tiles >> 1 & 1) ^ 1);
				load_tile(p, &map, piece, block, kv_head, smem_addr(kv_tile + slot * TILE_BYTES),
				          smem_addr(&bar_full[slot][0]), &bad_tile[slot], policy);
			}
		}
		grid_launch_dependents();
	} else if (warp > 4) { /* ---- q loader ---- */
		while (walk_next(p, walk, row_tile, piece)) {
			if (piece.begin == piece.end)
				continue;
			const int slot = pieces & 1;
			mbar_wait(smem_addr(&bar_q_empty[slot]), (pieces >> 1 & 1) ^ 1);
			load_q(p, piece, kv_head, row_tile, q_tile + slot * Q_BYTES, threadIdx.x - 160, 96);
			fence_async_proxy();
			mbar_arrive(smem_addr(&bar_q_full[slot]));
			pieces++;
		}
	} else { /* ---- consumers ---- */
		/* Without a rope part (d_qk 512) the ninth slice of q is zero and meets the first slice of K. */
		const uint32_t rope_offset = p.slices == QK_SLICES ? V_SLICES * SLICE_BYTES : 0;
		while (walk_next(p, walk, row_tile, piece)) {
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
			/* Keys in [all_lo, all_hi) are seen by every row, keys outside of [any_lo, len) by none. */
			const int all_hi = visible(p, piece, 0).hi, any_lo = visible(p, piece, 0).lo;
			const int all_lo = visible(p, piece, piece.tokens - 1).lo;
			const uint32_t q_addr = smem_addr(q_tile + (pieces & 1) * Q_BYTES);
			if (piece.begin < piece.end)
				mbar_wait(smem_addr(&bar_q_full[pieces & 1]), pieces >> 1 & 1);

			for (int block = piece.begin; block < piece.end; block++, tiles++) {
				const int slot = tiles & 1, parity = tiles >> 1 & 1, first = block * BLOCK;
				uint8_t *const tile = kv_tile + slot * TILE_BYTES;
				const uint32_t k_addr = smem_addr(tile);
				const uint32_t p_addr = smem_addr(p_tile + slot * P_BYTES);
				float s[ACC];

				/* 1. S^T = K Q^T, group by group as it lands. */
#pragma unroll
				for (int g = 0; g < GROUPS; g++) {
					mbar_wait(smem_addr(&bar_full[slot][g]), parity);
					wgmma_fence();
#pragma unroll
					for (int i = 0; i < GROUP_SLICES; i++) {
						const int slice = g * GROUP_SLICES + i;
						const uint32_t k_slice = k_addr + (slice == V_SLICES ? rope_offset : slice * SLICE_BYTES);
#pragma unroll
						for (int k = 0; k < 4; k++)
							WGMMA(MMA, s, desc_k_major(k_slice + 32 * k),
							      desc_k_major(q_addr + slice * ROWS * 128 + 32 * k), (slice | k) != 0, 0, 0);
					}
				}
				wgmma_commit();
				WGMMA_WAIT(0);
				poisoned |= bad_tile[slot] != 0;
				if (block + 1 == piece.end && lane == 0)
					mbar_arrive(smem_addr(&bar_q_empty[pieces & 1]));

				/* 2. Scale and mask; unused rows of V become zeros. */
				float x[ACC];
#pragma unroll
				for (int i = 0; i < ACC; i++)
					x[i] = s[i] * p.scale_log2;
				if (first < all_lo || first + BLOCK > all_hi) {
					const int t = first + 16 * warp + (lane >> 2);
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						const struct span see = visible(p, piece, (row_tile * ROWS + COL_ROW(c)) / p.group);
						if (t < see.lo || t >= see.hi)
							x[COL_REG(c)] = -INFINITY;
						if (t + 8 < see.lo || t + 8 >= see.hi)
							x[COL_REG(c) + 2] = -INFINITY;
					}
				}
				if (first < any_lo || first + BLOCK > piece.len)
					zero_rows(tile, any_lo - first, piece.len - first, threadIdx.x, 128);

				/* 3. P against the reference maximum, stored as [row][token] for V^T P^T. */
				bool grew = false;
#pragma unroll
				for (int c = 0; c < COLS; c++)
					grew |= fmaxf(x[COL_REG(c)], x[COL_REG(c) + 2]) > m[c] + 8.0f;
				float e[ACC];
#pragma unroll
				for (int c = 0; c < COLS; c++) {
					e[COL_REG(c)] = exp2_approx(x[COL_REG(c)] - m[c]);
					e[COL_REG(c) + 2] = exp2_approx(x[COL_REG(c) + 2] - m[c]);
				}
#pragma unroll
				for (int j = 0; j < JS; j++)
					store_matrix_x2_trans(p_addr + swizzled(8 * j + (lane & 7), 2 * warp + (lane >> 3 & 1)),
					                      PACK(e[4 * j], e[4 * j + 1]), PACK(e[4 * j + 2], e[4 * j + 3]));
				fence_async_proxy();
				if (barrier_or(1, 128, grew)) {
					/* 3b. Some row grew: raise all references to the true maximum so far and rescale. */
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						float top = fmaxf(x[COL_REG(c)], x[COL_REG(c) + 2]);
						top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 4));
						top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 8));
						top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 16));
						if (lane < 4)
							exchange[warp][COL_ROW(c)] = top;
					}
					named_barrier(1, 128);
					float factor[COLS];
#pragma unroll
					for (int c = 0; c < COLS; c++) {
						const int row = COL_ROW(c);
						const float top =
						    fmaxf(fmaxf(exchange[0][row], exchange[1][row]), fmaxf(exchange[2][row], exchange[3][row]));
						const float raised = fmaxf(m[c], top);
						factor[c] = exp2_approx(m[c] - raised);
						m[c] = raised;
						l[c] *= factor[c];
						e[COL_REG(c)] = exp2_approx(x[COL_REG(c)] - raised);
						e[COL_REG(c) + 2] = exp2_approx(x[COL_REG(c) + 2] - raised);
					}
#pragma unroll
					for (int v = 0; v < V_SLICES; v++)
#pragma unroll
						for (int c = 0; c < COLS; c++) {
							o[v][COL_REG(c)] *= factor[c];
							o[v][COL_REG(c) + 2] *= factor[c];
						}
#pragma unroll
					for (int j = 0; j < JS; j++)
						store_matrix_x2_trans(p_addr + swizzled(8 * j + (lane & 7), 2 * warp + (lane >> 3 & 1)),
						                      PACK(e[4 * j], e[4 * j + 1]), PACK(e[4 * j + 2], e[4 * j + 3]));
					fence_async_proxy();
					named_barrier(1, 128);
				}
#pragma unroll
				for (int c = 0; c < COLS; c++)
					l[c] += e[COL_REG(c)] + e[COL_REG(c) + 2];

				/* 4. O^T += V^T P^T, 64 dims of V at a time. */
				wgmma_fence();
#pragma unroll
				for (int k = 0; k < 4; k++)
#pragma unroll
					for (int v = 0; v < V_SLICES; v++)
						WGMMA(MMA, o[v], desc_mn_major(k_addr + v * SLICE_BYTES + 2048 * k, SLICE_BYTES),
						      desc_k_major(p_addr + 32 * k), 1, 1, 0);
				wgmma_commit();
				WGMMA_WAIT(0);
				if (lane == 0)
					mbar_arrive(smem_addr(&bar_empty[slot]));
			}
			if (piece.begin < piece.end)
				pieces++;

				/* 5. The piece's result: normalised rows to out or to the partial slot. */
#pragma unroll
			for (int c = 0; c < COLS; c++) {
				l[c] += __shfl_xor_sync(0xffffffff, l[c], 4);
				l[c] += __shfl_xor_sync(0xffffffff, l[c], 8);
				l[c] += __shfl_xor_sync(0xffffffff, l[c], 16);
				if (lane < 4)
					exchange[warp][COL_ROW(c)] = l[c];
			}
			named_barrier(1, 128);
			const int rows = piece.tokens * p.group - row_tile * ROWS;
			float norm[COLS];
#pragma unroll
			for (int c = 0; c < COLS; c++) {
				const int row = COL_ROW(c);
				const float sum = exchange[0][row] + exchange[1][row] + exchange[2][row] + exchange[3][row];
				const float lse2 = poisoned ? NAN : sum == 0 ? -INFINITY : m[c] + log2f(sum);
				norm[c] = poisoned ? NAN : sum == 0 ? 0.0f : 1.0f / sum;
				if (row < rows && piece.slot < 0) {
					const struct row_target t = row_target(p, piece, kv_head, row_tile * ROWS + row);
					norm[c] *= sink_factor(p, t.head, lse2);
					if (t.lse && warp == 0 && lane < 4)
						*t.lse = natural_lse(p, lse2);
				} else if (row < rows && warp == 0 && lane < 4) {
					p.partial_lse[((int64_t)piece.slot * p.h_kv * p.row_tiles + kv_head * p.row_tiles + row_tile) *
					                  ROWS +
					              row] = lse2;
				}
			}
			named_barrier(1, 128); /* exchange may be written again */
			if (piece.slot < 0) {
#pragma unroll
				for (int j = 0; j < JS; j++) { /* 8 dims x 8 rows at a time, transposed within the warp */
					const int row = 8 * j + (lane >> 2);
					uint16_t *out = NULL;
					if (row < rows)
						out = row_target(p, piece, kv_head, row_tile * ROWS + row).out + 16 * warp + 2 * (lane & 3);
#pragma unroll
					for (int v = 0; v < V_SLICES; v++)
#pragma unroll
						for (int h = 0; h < 2; h++) {
							const uint32_t two = transpose_8x8(
							    PACK(o[v][4 * j + 2 * h] * norm[2 * j], o[v][4 * j + 2 * h + 1] * norm[2 * j + 1]));
							if (out)
								store_two(p, out + 64 * v + 8 * h, two);
						}
				}
			} else {
				float *out =
				    p.partial_out +
				    ((int64_t)piece.slot * p.h_kv * p.row_tiles + kv_head * p.row_tiles + row_tile) * ROWS * D_V;
#pragma unroll
				for (int c = 0; c < COLS; c++)
					if (COL_ROW(c) < rows) {
						float *row = out + COL_ROW(c) * D_V + 16 * warp + (lane >> 2);
#pragma unroll
						for (int v = 0; v < V_SLICES; v++) {
							row[64 * v] = o[v][COL_REG(c)] * norm[c];
							row[64 * v + 8] = o[v][COL_REG(c) + 2] * norm[c];
						}
					}
			}
		}
	}
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
