/* SPDX-License-Identifier: MIT
 *
 * decode.h - stage 3 without matrix units, for every OpenCL device: the template that kernels.h includes once for bf16
 * and once for fp16 with
 *     PK_NAME(x)              x with the type's suffix
 *     PK_LOW(w), PK_HIGH(w)   the two values of a 32-bit word as float
 *     PK_NARROW(x)            a float as a 16-bit value
 *
 * Group     PK_TILE_ROWS query rows of one KV head, over the pieces of one part; group number = part * tiles + tile, so
 *           that groups which read the same keys run side by side.
 * Loop      PK_TILE_KEYS keys at a time: load K; S = Q K^T, one score a work-item; softmax; O += P V, where work-item t
 *           owns columns 2 t and 2 t + 1 of all rows.
 * Shared    Q and K as words of two values, rows of an odd number of words so that a column of them is free of bank
 *           conflicts; 38.4 KiB with the small arrays.
 * P stays fp32.  lse sums what is multiplied with V. */

PK_KERNEL PK_NAME(fmla_pk_decode)(const PK_GLOBAL char *PK_RESTRICT q_, const PK_GLOBAL char *PK_RESTRICT kv_,
                                  const PK_GLOBAL char *PK_RESTRICT table_, const PK_GLOBAL char *PK_RESTRICT lens_,
                                  const PK_GLOBAL char *PK_RESTRICT cu_, const PK_GLOBAL char *PK_RESTRICT sink_,
                                  PK_GLOBAL char *PK_RESTRICT out_, PK_GLOBAL char *PK_RESTRICT lse_,
                                  PK_GLOBAL char *PK_RESTRICT ws, const struct pk_shape p)
{
	PK_SHARED uint32_t Q[PK_TILE_ROWS * PK_STRIDE];
	PK_SHARED uint32_t K[PK_TILE_KEYS * PK_STRIDE];
	PK_SHARED float S[PK_TILE_ROWS * (PK_TILE_KEYS + 1)];
	PK_SHARED float P[PK_TILE_KEYS * PK_TILE_ROWS]; /* [key][row] */
	PK_SHARED float scaling[PK_TILE_ROWS];
	PK_SHARED int absent[PK_TILE_KEYS]; /* a page of this key's was out of range */
	const PK_GLOBAL uint16_t *q = PK_IN(uint16_t, q_, p.at_q), *kv = PK_IN(uint16_t, kv_, p.at_kv);
	const PK_GLOBAL int32_t *table = PK_IN(int32_t, table_, p.at_table), *lens = PK_IN(int32_t, lens_, p.at_lens);
	const PK_GLOBAL int32_t *cu = PK_IN(int32_t, cu_, p.at_cu);

	const int t = PK_ITEM(), tiles = p.h_kv * p.row_tiles;
	const int number = PK_GROUP() / tiles, head = PK_GROUP() % tiles / p.row_tiles, tile = PK_GROUP() % p.row_tiles;
	const int my_row = t / PK_TILE_KEYS,
	          my_key = t % PK_TILE_KEYS; /* of S; as well: which row or key to load, which word */
	const int words = p.d_qk / 2;
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

		/* Q.  Its rows may start anywhere, so two 16-bit loads a word. */
		{
			const int64_t at = pk_q_at(&p, cu, piece.req, head, r);
			for (int w = my_key; w < words; w += PK_TILE_KEYS)
				Q[my_row * PK_STRIDE + w] = (uint32_t)q[at + 2 * w] | (uint32_t)q[at + 2 * w + 1] << 16;
		}
		if (t < PK_TILE_KEYS)
			absent[t] = 0;

		float low[PK_TILE_ROWS], high[PK_TILE_ROWS]; /* O: columns 2 t and 2 t + 1 */
		for (int i = 0; i < PK_TILE_ROWS; i++)
			low[i] = high[i] = 0.0f;
		float top = -PK_INFINITY, sum = 0.0f; /* of my_row; sum: over keys my_key + n * PK_TILE_KEYS only */

		for (int n0 = start; n0 < stop; n0 += PK_TILE_KEYS) {
			PK_SYNC(); /* K, S, P and scaling are free; Q is there */
			{
				const int key = n0 + my_row; /* PK_TILE_ROWS == PK_TILE_KEYS */
				const int page = key < stop ? table[piece.req * p.table_stride + key / p.page] : -1;
				const int there = page >= 0 && page < p.num_pages;
				const int64_t at = there ? page * p.kv_page + key % p.page * p.kv_token + head * p.kv_head : 0;
				const PK_GLOBAL pk_word *row = (const PK_GLOBAL pk_word *)(kv + at);
				for (int w = my_key; w < words; w += PK_TILE_KEYS)
					K[my_row * PK_STRIDE + w] = there ? row[w] : 0u;
				if (key < stop && !there && my_key == 0)
					absent[my_row] = 1;
			}
			PK_SYNC();
			float even = 0.0f, odd = 0.0f;
			for (int w = 0; w < words; w++) {
				const uint32_t a = Q[my_row * PK_STRIDE + w], b = K[my_key * PK_STRIDE + w];
				even = PK_FMA(PK_LOW(a), PK_LOW(b), even);
				odd = PK_FMA(PK_HIGH(a), PK_HIGH(b), odd);
			}
			const int key = n0 + my_key;
			const int visible = key < stop && key >= seen.low && key < seen.high;
			const float score = visible ? (even + odd) * p.scale_log2 : -PK_INFINITY;
			S[my_row * (PK_TILE_KEYS + 1) + my_key] = score;
			PK_SYNC();
			float higher = top;
			for (int k = 0; k < PK_TILE_KEYS; k++) {
				const float x = S[my_row * (PK_TILE_KEYS + 1) + k];
				higher = x > higher ? x : higher;
			}
			const float base = higher == -PK_INFINITY ? 0.0f : higher; /* nothing seen so far */
			const float shrink = PK_EXP2(top - base), weight = visible ? PK_EXP2(score - base) : 0.0f;
			top = higher;
			sum = sum * shrink + weight;
			P[my_key * PK_TILE_ROWS + my_row] = weight;
			if (my_key == 0)
				scaling[my_row] = shrink;
			PK_SYNC(); /* P is there */
			for (int i = 0; i < PK_TILE_ROWS; i++) {
				low[i] *= scaling[i];
				high[i] *= scaling[i];
			}
			for (int k = 0; k < PK_TILE_KEYS; k++) {
				const uint32_t v = K[k * PK_STRIDE + t];
				const float a = PK_LOW(v), b = PK_HIGH(v);
				for (int i = 0; i < PK_TILE_ROWS; i++) {
					const float w = P[k * PK_TILE_ROWS + i];
					low[i] = PK_FMA(w, a, low[i]);
					high[i] = PK_FMA(w, b, high[i]);
				}
			}
		}

		/* The rows' sums, by PK_TILE_KEYS work-items each, and what to scale O with. */
		PK_SYNC();
		S[my_row * (PK_TILE_KEYS + 1) + my_key] = sum;
		PK_SYNC();
		if (my_key == 0 && my_row < rows) {
			float total = 0.0f;
			int wild = 0;
			for (int k = 0; k < PK_TILE_KEYS; k++) {
				total += S[my_row * (PK_TILE_KEYS + 1) + k];
				wild |= absent[k];
			}
			scaling[my_row] = pk_settle_row(&p, &ends, &piece, my_row, top, total, wild);
		}
		PK_SYNC();
		for (int i = 0; i < rows; i++) {
			const float a = low[i] * scaling[i], b = high[i] * scaling[i];
			if (piece.slot >= 0) {
				const int64_t row = pk_partial_row(&p, piece.slot, head, tile, i);
				PK_GLOBAL float *o = PK_AT(float, ws, p.ws_out) + row * D_V + 2 * t;
				o[0] = a;
				o[1] = b;
			} else {
				PK_GLOBAL uint16_t *o =
				    PK_AT(uint16_t, out_, p.at_out) + pk_out_at(&p, cu, piece.req, head, first + i) + 2 * t;
				o[0] = PK_NARROW(a);
				o[1] = PK_NARROW(b);
			}
		}
		PK_SYNC(); /* Q, S and scaling are free */
	}
}
