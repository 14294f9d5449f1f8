/* SPDX-License-Identifier: MIT
 *
 * decode_wave.h - stage 3 with matrix units of 64-lane waves: D [16 x 16] += A [16 x 16] B [16 x 16], AMD's MFMA first.
 * The template that kernels.h includes once for bf16 and once for fp16, where PK_WAVES is defined (HIP, the emulator),
 * with the macros of decode.h and PK_MMA(d, a, b).
 *
 * Lanes     A: lane l has row l % 16, columns 4 (l / 16) + j, j = 0 .. 3.  B: column l % 16, rows 4 (l / 16) + j.
 *           D: PK_D_ROW(l, j) and PK_D_COLUMN(l, j), which differ between vendors.
 * Group     four waves, 16 query rows; groups and pieces as in decode.h
 * Tile      32 keys in shared memory
 * S         wave w: keys 16 (w % 2) .. + 15, dims of half w / 2, whose part of Q it keeps in registers; the two halves
 *           are added when they are read
 * O         wave w: columns 128 w .. + 127
 * Shared    45 KiB of the 64 KiB of a compute unit */

PK_KERNEL PK_NAME(fmla_pk_wave)(const PK_GLOBAL char *PK_RESTRICT q_, const PK_GLOBAL char *PK_RESTRICT kv_,
                                const PK_GLOBAL char *PK_RESTRICT table_, const PK_GLOBAL char *PK_RESTRICT lens_,
                                const PK_GLOBAL char *PK_RESTRICT cu_, const PK_GLOBAL char *PK_RESTRICT sink_,
                                PK_GLOBAL char *PK_RESTRICT out_, PK_GLOBAL char *PK_RESTRICT lse_,
                                PK_GLOBAL char *PK_RESTRICT ws, const struct pk_shape p)
{
	PK_SHARED uint64_t K[PK_WAVE_KEYS * PK_WAVE_STRIDE]; /* words of four values */
	PK_SHARED float S[2 * PK_TILE_ROWS * (PK_WAVE_KEYS + 1)];
	PK_SHARED uint64_t P[PK_TILE_ROWS * PK_P_STRIDE];
	PK_SHARED float scaling[PK_TILE_ROWS];
	PK_SHARED int absent[PK_WAVE_KEYS];
	PK_MMA_SHARED
	const PK_GLOBAL uint16_t *q = PK_IN(uint16_t, q_, p.at_q), *kv = PK_IN(uint16_t, kv_, p.at_kv);
	const PK_GLOBAL int32_t *table = PK_IN(int32_t, table_, p.at_table), *lens = PK_IN(int32_t, lens_, p.at_lens);
	const PK_GLOBAL int32_t *cu = PK_IN(int32_t, cu_, p.at_cu);

	const int t = PK_ITEM(), lane = t % 64, wave = t / 64, in16 = lane % 16, quarter = lane / 16;
	const int tiles = p.h_kv * p.row_tiles;
	const int number = PK_GROUP() / tiles, head = PK_GROUP() % tiles / p.row_tiles, tile = PK_GROUP() % p.row_tiles;
	const int my_row = t / 16, my_key = 2 * (t % 16); /* softmax: two scores a work-item */
	const int keys_of = 16 * (wave % 2), half = wave / 2;
	const struct part part = PK_IN(struct part, ws, p.ws_parts)[number];
	struct pk_piece piece = {-1, 0, 0, 0, 0, 0};
	const struct pk_ends ends = {
	    cu, PK_IN(float, sink_, p.at_sink), PK_AT(float, lse_, p.at_lse), PK_AT(float, ws, p.ws_lse), head, tile};

	while (pk_next_piece(&p, lens, cu, &part, number, &piece)) {
		const int first = tile * PK_TILE_ROWS, left = piece.tokens * p.group - first;
		const int rows = left < PK_TILE_ROWS ? left : PK_TILE_ROWS;
		if (rows <= 0)
			continue;
		const int r = first + (my_row < rows ? my_row : 0); /* idle work-items repeat a row */
		const struct pk_keys seen = pk_row_keys(&p, &piece, r / p.group);
		const int lowest = pk_row_keys(&p, &piece, 0).low; /* keys before are nobody's */
		int start = piece.begin * BLOCK, stop = piece.end * BLOCK;
		start = lowest > start ? lowest : start;
		stop = piece.length < stop ? piece.length : stop;

		/* Q: A operands of this wave's 18 steps of 16 dims. */
		uint64_t qs[PK_WAVE_STEPS]; /* words of four values */
		{
			const int64_t at = pk_q_at(&p, cu, piece.req, head, first + (in16 < rows ? in16 : 0));
			/* unrolled, or the operands would not lie in registers */
			PK_UNROLL
			for (int i = 0; i < PK_WAVE_STEPS; i++) {
				const int d = 16 * (PK_WAVE_STEPS * half + i) + 4 * quarter, there = d < p.d_qk;
				const int64_t from = at + (there ? d : 0);
				const uint64_t x = (uint64_t)q[from] | (uint64_t)q[from + 1] << 16 | (uint64_t)q[from + 2] << 32 |
				                   (uint64_t)q[from + 3] << 48;
				qs[i] = there ? x : 0;
			}
		}
		if (t < PK_WAVE_KEYS)
			absent[t] = 0;
		pk_sums o[8];
		PK_UNROLL
		for (int n = 0; n < 8; n++)
			for (int j = 0; j < 4; j++)
				o[n][j] = 0.0f;
		float top = -PK_INFINITY, sum = 0.0f; /* of my_row; sum: of this work-item's keys */

		for (int n0 = start; n0 < stop; n0 += PK_WAVE_KEYS) {
			PK_SYNC(); /* K, S, P and scaling are free */
			{
				const int row = t / 8, key = n0 + row; /* eight work-items a key */
				const int page = key < stop ? table[piece.req * p.table_stride + key / p.page] : -1;
				const int there = page >= 0 && page < p.num_pages;
				const int64_t at = there ? page * p.kv_page + key % p.page * p.kv_token + head * p.kv_head : 0;
				const PK_GLOBAL pk_long_word *from = (const PK_GLOBAL pk_long_word *)(kv + at);
				for (int w = t % 8; w < D_QK / 4; w += 8)
					K[row * PK_WAVE_STRIDE + w] = there && 4 * w < p.d_qk ? from[w] : 0;
				if (key < stop && !there && t % 8 == 0)
					absent[row] = 1;
			}
			PK_SYNC();
			pk_sums s; /* vectors, element by element */
			for (int j = 0; j < 4; j++)
				s[j] = 0.0f;
			PK_UNROLL
			for (int i = 0; i < PK_WAVE_STEPS; i++) { /* B: column = key, four dims in a row */
				const pk_four b =
				    PK_FOUR(K[(keys_of + in16) * PK_WAVE_STRIDE + 4 * (PK_WAVE_STEPS * half + i) + quarter]);
				PK_MMA(s, PK_FOUR(qs[i]), b);
			}
			for (int j = 0; j < 4; j++)
				S[(PK_TILE_ROWS * half + PK_D_ROW(lane, j)) * (PK_WAVE_KEYS + 1) + keys_of + PK_D_COLUMN(lane, j)] =
				    s[j];
			PK_SYNC();
			float score[2], weight[2];
			for (int j = 0; j < 2; j++) {
				const int key = n0 + my_key + j, at = my_row * (PK_WAVE_KEYS + 1) + my_key + j;
				const int visible = key < stop && key >= seen.low && key < seen.high;
				score[j] = visible ? (S[at] + S[PK_TILE_ROWS * (PK_WAVE_KEYS + 1) + at]) * p.scale_log2 : -PK_INFINITY;
			}
			PK_SYNC(); /* S was read */
			for (int j = 0; j < 2; j++)
				S[my_row * (PK_WAVE_KEYS + 1) + my_key + j] = score[j];
			PK_SYNC();
			float higher = top;
			for (int k = 0; k < PK_WAVE_KEYS; k++) {
				const float x = S[my_row * (PK_WAVE_KEYS + 1) + k];
				higher = x > higher ? x : higher;
			}
			const float base = higher == -PK_INFINITY ? 0.0f : higher, shrink = PK_EXP2(top - base);
			for (int j = 0; j < 2; j++)
				weight[j] = score[j] == -PK_INFINITY ? 0.0f : PK_EXP2(score[j] - base);
			top = higher;
			sum = sum * shrink + (weight[0] + weight[1]);
			((PK_LOCAL pk_word *)P)[(my_row * PK_P_STRIDE) * 2 + my_key / 2] =
			    (uint32_t)PK_NARROW(weight[0]) | (uint32_t)PK_NARROW(weight[1]) << 16;
			if (my_key == 0)
				scaling[my_row] = shrink;
			PK_SYNC(); /* P is there */
			PK_UNROLL
			for (int n = 0; n < 8; n++)
				for (int j = 0; j < 4; j++)
					o[n][j] *= scaling[PK_D_ROW(lane, j)];
			PK_UNROLL
			for (int step = 0; step < PK_WAVE_KEYS / 16; step++) {
				const pk_four a = PK_FOUR(P[in16 * PK_P_STRIDE + 4 * step + quarter]);
				PK_UNROLL
				for (int n = 0; n < 8; n++) { /* B: column = value, four keys below each other */
					pk_four b;
					for (int j = 0; j < 4; j++)
						b[j] =
						    ((const PK_LOCAL pk_short *)
						         K)[(16 * step + 4 * quarter + j) * (4 * PK_WAVE_STRIDE) + 128 * wave + 16 * n + in16];
					PK_MMA(o[n], a, b);
				}
			}
		}

		/* The rows' sums, and what to scale O with: as in decode.h. */
		PK_SYNC();
		S[my_row * (PK_WAVE_KEYS + 1) + my_key / 2] = sum;
		PK_SYNC();
		if (my_key == 0 && my_row < rows) {
			float total = 0.0f;
			int wild = 0;
			for (int k = 0; k < 16; k++)
				total += S[my_row * (PK_WAVE_KEYS + 1) + k];
			for (int k = 0; k < PK_WAVE_KEYS; k++)
				wild |= absent[k];
			scaling[my_row] = pk_settle_row(&p, &ends, &piece, my_row, top, total, wild);
		}
		PK_SYNC();
		PK_UNROLL
		for (int n = 0; n < 8; n++)
			for (int j = 0; j < 4; j++) {
				const int i = PK_D_ROW(lane, j), column = 128 * wave + 16 * n + PK_D_COLUMN(lane, j);
				if (i >= rows)
					continue;
				const float x = o[n][j] * scaling[i];
				if (piece.slot >= 0) {
					const int64_t row = pk_partial_row(&p, piece.slot, head, tile, i);
					PK_AT(float, ws, p.ws_out)[row * D_V + column] = x;
				} else {
					PK_AT(uint16_t, out_, p.at_out)
					[pk_out_at(&p, cu, piece.req, head, first + i) + column] = PK_NARROW(x);
				}
			}
		PK_SYNC(); /* S and scaling are free */
	}
}
