/* SPDX-License-Identifier: MIT
 *
 * gather.cuh - stage 4 inside the decode kernels: the CTAs that share a request merge its pieces among themselves,
 *     lse = log2 sum_j 2^lse_j,   out = sum_j 2^(lse_j - lse) out_j      (pieces are normalised, lse in base 2)
 *
 * Shares    the rows of a tile are cut into entries, whole rows or parts of a row, as many as there are pieces where
 *           possible; CTA i of the n that share a request reads back entries i E / n .. (i + 1) E / n of every piece, as many
 *           bytes as it has written
 * Arrivals  per piece and entry one 16-byte word {lse of the row, ARRIVED}, written once after the piece's values and read
 *           by one CTA, which clears it.  So between calls none says ARRIVED, and memory that never was a workspace does
 *           not either (one chance in 2^64 a word): nothing has to be initialised, and a graph may be replayed
 * Waiting   a CTA first writes all its own pieces, so it waits for nobody who waits for it.  But a CTA that has not
 *           started may need the SM of one that waits (another stream's kernel can have taken the rest): after
 *           PATIENCE the CTA writes ADOPTED over a word that is missing and leaves; who brings that piece finds the mark
 *           when it swaps in its own word, and merges the share in the other's place
 * Order     every sum is taken in the order of the pieces: deterministic, whoever computes it */
#ifndef FMLA_GATHER_CUH
#define FMLA_GATHER_CUH

#include "tile.cuh"
#include "value.cuh"

#define ARRIVED 0x9c3f7a61d2e8b405ull
#define ADOPTED 0x5b08d1e72c94f63aull

enum {
	PATIENCE = 100000, /* clocks, about 60 us                            */
	SUMMERS = 256      /* threads of a CTA that add up; watchers may, too */
};

/* Named barriers: watchers wait for consumers (no more tiles will be read) and for summers, watchers meet, summers meet. */
enum { TILES_FREE = 7, SUMMERS_DONE, WATCHERS_ONLY, SUMMERS_ONLY };

/* How a tile's rows are cut: entry k is part k % 2^shift of row k / 2^shift. */
struct shares {
	int entries, shift;
};

DEV struct shares shares_of(const struct decode_params &p, const struct split &u, int row_tile)
{
	const int rows = max(0, min(p.tile_rows, u.tokens * p.group - row_tile * p.tile_rows));
	struct shares s = {rows, 0};
	while (s.shift < 3 && 2 * s.entries <= min(u.pieces, MAX_ENTRIES)) {
		s.entries *= 2;
		s.shift++;
	}
	return s;
}

/* The first entry of share i.  All quotients here are below 2^8, where this is exact. */
DEV int quotient(int n, float inverse)
{
	return (int)(((float)n + 0.5f) * inverse);
}

DEV int share_begin(const struct shares &s, float per_piece, int i)
{
	return quotient(i * s.entries, per_piece);
}

/* The share with entry k. */
DEV int share_with(const struct shares &s, const struct split &u, int k)
{
	return ((k + 1) * u.pieces + s.entries - 1) / s.entries - 1;
}

/* The word for entry k of the piece of `part` that starts or continues a request; of neighbouring parts, neighbours. */
DEV struct word128 *arrival(const struct decode_params &p, int tile, bool starts, int k, int part)
{
	return p.arrivals + ((int64_t)((starts ? p.h_kv * p.row_tiles : 0) + tile) * p.arrival_width + k) * p.num_parts +
	       part;
}

/* Tells the CTAs that wait for a piece of `part` that its values are there: a warp that knows they are, lane k entries k,
 * k + 32, ...  lse, scales (of 16-bit partials, or NULL): of the rows.  was: what the words replaced. */
DEV void announce(const struct decode_params &p, const struct split &u, int kv_head, int row_tile, bool starts,
                  int part, const float *lse, const uint32_t *scales, uint64_t (&was)[MAX_ENTRIES / 32])
{
	const struct shares s = shares_of(p, u, row_tile);
	fence_gpu();
#pragma unroll
	for (int i = 0; i < MAX_ENTRIES / 32; i++) {
		const int k = 32 * i + (threadIdx.x & 31), row = k >> s.shift;
		was[i] = 0;
		if (k < s.entries) {
			const uint64_t scale = scales ? scales[row] : 0;
			const struct word128 mine = {__float_as_uint(lse[row]) | scale << 32, ARRIVED};
			was[i] = exchange(arrival(p, kv_head * p.row_tiles + row_tile, starts, k, part), mine).hi;
		}
	}
}

/* The words of the part's first piece (0) or last one (1) that replaced ADOPTED: those shares are this CTA's. */
DEV void adopt(struct schedule &schedule, int which, const uint64_t (&was)[MAX_ENTRIES / 32])
{
#pragma unroll
	for (int i = 0; i < MAX_ENTRIES / 32; i++)
		if (was[i] == ADOPTED)
			atomicOr(&schedule.adopted[which][i], 1u << (threadIdx.x & 31)), schedule.adopted_any = 1;
}

/* A share: entries first .. first + count of a tile.  Word e of it is about entry first + e / pieces of piece e % pieces. */
struct merge_share {
	int tile, first, count, words;
	int shift;       /* 2^shift entries a row       */
	int entry_bytes; /* of a piece's values         */
	float per_piece; /* 1 / pieces                  */
};

DEV struct merge_share merge_share(const struct decode_params &p, const struct split &u, int kv_head, int row_tile,
                                   int share)
{
	const struct shares s = shares_of(p, u, row_tile);
	struct merge_share a;
	a.per_piece = __fdividef(1.0f, (float)u.pieces);
	a.tile = kv_head * p.row_tiles + row_tile;
	a.first = share_begin(s, a.per_piece, share);
	a.count = share_begin(s, a.per_piece, share + 1) - a.first;
	a.words = a.count * u.pieces;
	a.shift = s.shift;
	a.entry_bytes = D_V * p.partial_bytes >> s.shift;
	return a;
}

/* Its shared memory, by word except for the rows' ends. */
struct room {
	uint8_t *values;
	float *weight;    /* the lse of the row in that piece, later its weight              */
	uint32_t *scales; /* of 16-bit partials: what the halves of the row were divided by  */
	struct row_end *ends;
	float4 *sums; /* where a unit has several summers: theirs  */
	int bytes;
};

/* Fewer units of 16 bytes of an entry's values than summers? */
DEV bool few_units(const struct merge_share &a)
{
	return a.count * a.entry_bytes < 16 * SUMMERS;
}

DEV struct room room_of(const struct decode_params &p, const struct merge_share &a, uint8_t *at)
{
	struct room r;
	r.values = at;
	r.sums = (float4 *)(at + a.words * a.entry_bytes);
	r.ends = (struct row_end *)(r.sums + (few_units(a) ? SUMMERS * (4 / p.partial_bytes) : 0));
	r.weight = (float *)(r.ends + a.count);
	r.scales = (uint32_t *)(r.weight + a.words);
	r.bytes = (int)((uint8_t *)(r.scales + a.words) - at + 127) & -128;
	return r;
}

/* Where a word is, where the values are, and where they go. */
struct sending {
	struct word128 *word;
	const char *from;
	uint32_t to;
};

DEV struct sending sending(const struct decode_params &p, const struct split &u, const struct merge_share &a, int e,
                           const struct room &room)
{
	const int i = a.count == 1 ? 0 : quotient(e, a.per_piece), j = e - i * u.pieces, k = a.first + i;
	const int slot = 2 * (u.first_part + j) + (j == 0);
	const int row = slot * p.h_kv * p.row_tiles * p.tile_rows + a.tile * p.tile_rows + (k >> a.shift);
	struct sending s;
	s.word = arrival(p, a.tile, j == 0, k, u.first_part + j);
	s.from = (const char *)p.partial_out + (int64_t)row * (D_V * p.partial_bytes) +
	         (k & ((1 << a.shift) - 1)) * a.entry_bytes;
	s.to = smem_addr(room.values) + e * a.entry_bytes;
	return s;
}

/* Waits for words e, e + WATCHERS, ..., keeps their lse, and sends for the values as each arrives; false when word e does
 * not in time. */
DEV bool await_pieces(const struct decode_params &p, const struct split &u, const struct merge_share &a, int &e,
                      const struct room &room, uint32_t bar)
{
	const long long start = clock64();
#pragma unroll 1
	for (; e < a.words; e += WATCHERS) {
		const struct sending at = sending(p, u, a, e, room);
		struct word128 got = load_acquire_128(at.word);
		while (got.hi != ARRIVED) {
			if (clock64() - start > PATIENCE)
				return false;
			got = load_acquire_128(at.word);
		}
		fence_async_proxy_all();
		mbar_expect_more(bar, a.entry_bytes);
		bulk_load(at.to, at.from, a.entry_bytes, bar);
		room.weight[e] = __uint_as_float((uint32_t)got.lo);
		room.scales[e] = (uint32_t)(got.lo >> 32);
	}
	return true;
}

/* By one thread: leaves the share to the CTA of a piece that is missing; false: none is missing any more. */
DEV bool leave_share(const struct decode_params &p, const struct split &u, const struct merge_share &a,
                     const struct room &room)
{
	const struct word128 mark = {0, ADOPTED};
#pragma unroll 1
	for (int e = 0; e < a.words; e++) {
		struct word128 *const at = sending(p, u, a, e, room).word;
		struct word128 seen = load_acquire_128(at);
		while (seen.hi != ARRIVED) {
			const struct word128 old = compare_swap(at, seen, mark);
			if (old.hi == seen.hi && old.lo == seen.lo)
				return true;
			seen = old;
		}
	}
	return false;
}

/* The larger of two; NaN is above all. */
DEV float larger(float a, float b)
{
	return b > a || b != b ? b : a;
}

/* The weights of the share's rows from their lse, as many lanes a row as there are; the rows' lse to the user. */
DEV void weigh(const struct decode_params &p, const struct split &u, const struct merge_share &a,
               const struct room &room, int watcher)
{
	int shift = 5;
	while (a.count << shift > WATCHERS)
		shift--;
	const int lanes = 1 << shift, i = watcher >> shift, lane = watcher & (lanes - 1);
	const int pieces = i < a.count ? u.pieces : 0;
	float *const x = room.weight + i * u.pieces;
	float top = -INFINITY, sum = 0;
	for (int j = lane; j < pieces; j += lanes)
		top = larger(top, x[j]);
	for (int d = lanes >> 1; d > 0; d >>= 1)
		top = larger(top, __shfl_xor_sync(0xffffffff, top, d));
	const float reference = top == -INFINITY ? 0.0f : top; /* pieces without keys weigh nothing instead of NaN */
	for (int j = lane; j < pieces; j += lanes)
		sum += exp2_approx(x[j] - reference);
	for (int d = lanes >> 1; d > 0; d >>= 1)
		sum += __shfl_xor_sync(0xffffffff, sum, d);
	if (i >= a.count)
		return;
	const float lse = row_lse(top, sum, false);
	const float scale = row_scale(sum, false) * sink_factor(room.ends[i].sink, lse);
	for (int j = lane; j < pieces; j += lanes)
		x[j] = exp2_approx(x[j] - reference) * scale;
	if (lane == 0 && ((a.first + i) & ((1 << a.shift) - 1)) == 0 && room.ends[i].lse)
		*room.ends[i].lse = natural_lse(p, lse);
}

/* What a thread has of a sum: COLUMNS neighbouring columns of a row, 16 bytes of a partial. */
template <int COLUMNS> struct columns {
	float x[COLUMNS];
};

DEV void add_weighed(struct columns<4> &sum, uint4 v, float weight, uint32_t scales, bool right)
{
	sum.x[0] += weight * __uint_as_float(v.x), sum.x[1] += weight * __uint_as_float(v.y);
	sum.x[2] += weight * __uint_as_float(v.z), sum.x[3] += weight * __uint_as_float(v.w);
}

/* 16-bit partials; scales: powers of two as bf16, of columns 0-255 and of the others. */
DEV void add_weighed(struct columns<8> &sum, uint4 v, float weight, uint32_t scales, bool right)
{
	const float w = weight * __uint_as_float(right ? scales & 0xffff0000 : scales << 16);
	const uint32_t two[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const float2 x = unpack_fp16(two[i]);
		sum.x[2 * i] += w * x.x;
		sum.x[2 * i + 1] += w * x.y;
	}
}

template <uint32_t (*PACK_TWO)(float, float), int COLUMNS>
DEV void store_columns(const struct decode_params &p, void *row, int column, const struct columns<COLUMNS> &sum)
{
	uint16_t *const out = (uint16_t *)row + column;
	uint32_t two[COLUMNS / 2];
#pragma unroll
	for (int i = 0; i < COLUMNS / 2; i++)
		two[i] = PACK_TWO(sum.x[2 * i], sum.x[2 * i + 1]);
#pragma unroll
	for (int i = 0; i < COLUMNS / 2; i += 2) {
		if (p.out_aligned) {
			*(uint2 *)(out + 2 * i) = make_uint2(two[i], two[i + 1]);
		} else {
			store_two(p, out + 2 * i, two[i]);
			store_two(p, out + 2 * i + 2, two[i + 1]);
		}
	}
}

/* Makes everything of a share arrive at `bar`, which counts WATCHERS: values and weights, or *handed.  By the watchers. */
DEV void watch_share(const struct decode_params &p, const struct split &u, const struct merge_share &a, int kv_head,
                     int row_tile, const struct room &room, int watcher, uint32_t bar, int16_t *handed)
{
	if (watcher == 0)
		*handed = false;
	if (watcher < a.count) {
		struct piece piece = {};
		piece.req = u.req;
		piece.slot = -1; /* to the user */
		piece.tokens = u.tokens;
		room.ends[watcher] = row_end(p, piece, kv_head, row_tile, (a.first + watcher) >> a.shift);
	}
	/* Neighbouring pieces by different warps: the lanes of one send one after the other. */
	const int mine = (watcher & 31) * (WATCHERS / 32) + (watcher >> 5);
	int next = mine;
	bool given = false;
	while (barrier_or(WATCHERS_ONLY, WATCHERS, !await_pieces(p, u, a, next, room, bar))) {
		if (watcher == 0)
			*handed = leave_share(p, u, a, room);
		named_barrier(WATCHERS_ONLY, WATCHERS);
		given = *handed;
		named_barrier(WATCHERS_ONLY, WATCHERS);
		if (given)
			break;
	}
	if (!given)
		weigh(p, u, a, room, watcher);
	mbar_arrive(bar);
	const struct word128 clear = {0, 0};
#pragma unroll 1
	for (int e = mine; e < a.words && !given; e += WATCHERS)
		*sending(p, u, a, e, room).word = clear;
}

/* Adds up a share whose values and weights are there, by SUMMERS threads.  COLUMNS of a row are 16 bytes of a partial.  A unit
 * is 16 bytes of an entry's values; with fewer units than threads several threads share one, thread `way` with pieces way,
 * way + ways, ... */
template <uint32_t (*PACK_TWO)(float, float), int COLUMNS>
DEV void sum_share(const struct decode_params &p, const struct split &u, const struct merge_share &a,
                   const struct room &room, int thread)
{
	const int log_units = (COLUMNS == 8 ? 6 : 7) - a.shift, units = a.count << log_units; /* of an entry, of all */
	const bool shared = few_units(a) && (units & (units - 1)) == 0;
	const int log_all = 31 - __clz(units), ways = shared ? SUMMERS >> log_all : 1;
	const uint4 *const values = (const uint4 *)room.values;
#pragma unroll 1
	for (int unit = shared ? thread & (units - 1) : thread, way = shared ? thread >> log_all : 0; unit < units;
	     unit += SUMMERS) {
		const int i = unit >> log_units, k = a.first + i, of = i * u.pieces, in = unit & ((1 << log_units) - 1);
		const int column = COLUMNS * (((k & ((1 << a.shift) - 1)) << log_units) + in);
		struct columns<COLUMNS> sum = {
		};
#pragma unroll 4
		for (int j = way; j < u.pieces; j += ways)
			add_weighed(sum, values[((of + j) << log_units) + in], room.weight[of + j], room.scales[of + j],
			            column >= D_V / 2);
		if (shared) {
#pragma unroll
			for (int c = 0; c < COLUMNS; c += 4)
				room.sums[c / 4 * SUMMERS + thread] = make_float4(sum.x[c], sum.x[c + 1], sum.x[c + 2], sum.x[c + 3]);
			named_barrier(SUMMERS_ONLY, SUMMERS);
			if (way)
				break;
#pragma unroll 4
			for (int w = 1; w < ways; w++)
#pragma unroll
				for (int c = 0; c < COLUMNS; c += 4) {
					const float4 other = room.sums[c / 4 * SUMMERS + thread + w * units];
					sum.x[c] += other.x, sum.x[c + 1] += other.y, sum.x[c + 2] += other.z, sum.x[c + 3] += other.w;
				}
		}
		store_columns<PACK_TWO, COLUMNS>(p, room.ends[i].out, column, sum);
	}
}

/* The summers meet, and the watchers wait for them. */
template <int THREADS> DEV void wait_for_summers(int watcher, int summer)
{
	if (summer >= 0)
		named_barrier(SUMMERS_ONLY, SUMMERS);
	if (THREADS > SUMMERS && watcher >= 0)
		named_barrier(SUMMERS_DONE, THREADS);
	else if (THREADS > SUMMERS)
		named_barrier_arrive(SUMMERS_DONE, THREADS);
}

/* A CTA's shares of the split requests at its part's borders, then the shares that other CTAs left to it.  last, was: what
 * this thread's words about the last piece told replaced.  watcher, summer: the thread's number among those, or -1; THREADS
 * there are.  The watchers come before the last piece is written.  space: of `size` bytes, the tiles'. */
template <uint32_t (*PACK_TWO)(float, float), int COLUMNS, int THREADS>
DEV void gather_all(const struct decode_params &p, struct schedule &schedule, int part, int kv_head, int row_tile,
                    const uint64_t (&was)[MAX_ENTRIES / 32], int last, int watcher, int summer, uint8_t *space,
                    int size)
{
	enum { OWN = 2 };
	int used = 0, done = 0;
	if (watcher >= 0)
		named_barrier(TILES_FREE, THREADS);
#pragma unroll 1
	for (int next = 0; next < OWN + 2 * MAX_ENTRIES; next++) {
		/* First the own two, then entry next / 2 of split request next % 2. */
		const int which = next & 1, entry = (next - OWN) / 2;
		if (next == OWN) {
			adopt(schedule, last, was);
			wait_for_summers<THREADS>(watcher, summer);
			if (!schedule.adopted_any) /* as good as always */
				return;
		}
		if (next < OWN ? schedule.split[which].pieces == 0 ||
		                     (which && schedule.split[0].pieces && schedule.split[0].req == schedule.split[1].req)
		               : !(schedule.adopted[which][entry / 32] >> entry % 32 & 1))
			continue;
		const struct split u = schedule.split[which];
		const struct merge_share a =
		    merge_share(p, u, kv_head, row_tile,
		                next < OWN ? part - u.first_part : share_with(shares_of(p, u, row_tile), u, entry));
		if (a.count == 0)
			continue;
		struct room room = room_of(p, a, space + used);
		if (next >= OWN || used + room.bytes > size) {
			wait_for_summers<THREADS>(watcher, summer); /* what was added up may be written over */
			room = room_of(p, a, space);
			used = 0;
		}
		used += room.bytes;
		const uint32_t bar = smem_addr(&schedule.bar_gather[done & 1]);
		int16_t *const handed = &schedule.handed[done & 1];
		if (watcher >= 0)
			watch_share(p, u, a, kv_head, row_tile, room, watcher, bar, handed);
		if (summer >= 0) {
			mbar_wait(bar, done >> 1 & 1);
			if (!*handed)
				sum_share<PACK_TWO, COLUMNS>(p, u, a, room, summer);
		}
		done++;
	}
}

#endif
