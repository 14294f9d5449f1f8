/* SPDX-License-Identifier: MIT
 *
 * Stage 2, plan, on the host: one pass over the requests, one over the borders, no allocation. */
#include "plan.h"

#include <string.h>

/* The rows and splits of a plan while they are written: the part that begins at `from` is open. */
struct writer {
	const struct problem *p;
	struct plan_axis axis;
	struct part *rows;
	int64_t num_rows;
	struct border from;
	int64_t split; /* borders of from.req up to `from` */
};

static struct part row_between(const struct writer *w, struct border to)
{
	const int64_t last = to.block > 0 ? to.req : to.req - 1;
	const struct blocks none = {0, 0};
	return plan_row(w->axis, w->from, w->from.req < w->p->b ? request_blocks(w->p, w->from.req) : none, w->split, to,
	                last >= 0 ? request_blocks(w->p, last) : none);
}

static void close_part(struct writer *w, struct border to)
{
	w->rows[w->num_rows++] = row_between(w, to);
	w->split = to.block > 0 ? (to.req == w->from.req ? w->split : 0) + 1 : 0;
	w->from = to;
}

void plan_build(const struct problem *p, struct plan_costs costs, int64_t num_parts, struct part *rows,
                int64_t num_rows, int32_t *splits)
{
	int64_t total = 0, longest = 0, shortest = INT64_MAX;
	for (int64_t i = 0; i < p->b; i++) {
		const struct blocks r = request_blocks(p, i);
		const int64_t n = r.end - r.begin;
		total += n;
		longest = n > longest ? n : longest;
		shortest = n < shortest ? n : shortest;
	}
	const struct plan_axis x = plan_axis(total, longest, shortest, p->b, num_parts, costs);
	struct writer w = {.p = p, .axis = x, .rows = rows};

	int64_t start = 0; /* of request i on the axis */
	splits[0] = 0;
	for (int64_t i = 0; i < p->b; i++) {
		const struct blocks r = request_blocks(p, i);
		const int64_t next = start + plan_cost(x, r);
		int64_t cuts = 0;
		while (w.num_rows + 1 < x.active && plan_position(x, w.num_rows + 1) < next) {
			const struct border to = plan_cut(x, plan_position(x, w.num_rows + 1), i, start, r);
			cuts += to.block > 0;
			close_part(&w, to);
		}
		splits[i + 1] = splits[i] + (int32_t)(x.chunk > 0 ? plan_chunks(x.chunk, r) : cuts + 1);
		start = next;
	}
	close_part(&w, (struct border){p->b, 0});
	while (w.num_rows < num_rows)
		rows[w.num_rows++] = (struct part){.begin_req = PLAN_IDLE, .tag = PLAN_TAG};
}

bool plan_fits(const struct problem *p, struct plan_costs costs, int64_t max_parts, const struct part *rows,
               int64_t num_rows, const int32_t *splits)
{
	struct writer w = {.p = p, .axis = {.chunk = costs.chunk}};
	int64_t checked = 0; /* requests whose entry of splits was compared */
	if (splits[0] != 0)
		return false;
	for (int64_t j = 0; j < num_rows; j++) {
		const struct part *row = &rows[j];
		if (row->begin_req == PLAN_IDLE)
			continue;
		if (j >= max_parts || row->end_req < w.from.req || row->end_req >= p->b)
			return false;
		/* The row's last border; then everything else in the row follows from the two borders. */
		const struct blocks last = request_blocks(p, row->end_req);
		struct border to = {row->end_req, row->end_block - last.begin};
		if (row->end_block == last.end)
			to = (struct border){row->end_req + 1, 0};
		else if (to.block <= 0 || row->end_block > last.end || (costs.chunk > 0 && row->end_block % costs.chunk != 0))
			return false;
		if (to.req == w.from.req && to.block <= w.from.block)
			return false;
		const struct part want = row_between(&w, to);
		if (memcmp(row, &want, sizeof(want)) != 0)
			return false;
		for (; checked < to.req; checked++) {
			const int64_t cuts = checked == w.from.req ? w.split : 0;
			const int64_t n = costs.chunk > 0 ? plan_chunks(costs.chunk, request_blocks(p, checked)) : cuts + 1;
			if (splits[checked + 1] != splits[checked] + n)
				return false;
		}
		w.split = to.block > 0 ? (to.req == w.from.req ? w.split : 0) + 1 : 0;
		w.from = to;
	}
	return w.from.req == p->b;
}

void plan_ready(const struct problem *p, struct plan_costs costs, int64_t num_parts, struct part *rows, int32_t *splits)
{
	if (!p->plan_parts || !plan_fits(p, costs, num_parts, p->plan_parts, p->num_parts, p->plan_splits)) {
		plan_build(p, costs, num_parts, rows, num_parts, splits);
		return;
	}
	for (int64_t j = 0; j < num_parts; j++)
		rows[j] = j < p->num_parts ? p->plan_parts[j] : (struct part){.begin_req = PLAN_IDLE, .tag = PLAN_TAG};
	memcpy(splits, p->plan_splits, (size_t)(p->b + 1) * sizeof(*splits));
}

/* ---- pieces ---------------------------------------------------------------------------------------------------- */

int64_t plan_partial_rows(const struct problem *p, int32_t chunk, int64_t num_parts)
{
	if (chunk == 0) /* a part has at most two pieces of split requests */
		return num_parts > 1 ? 2 * num_parts * p->s_q * p->h_q : 0;
	int64_t keys = p->max_pages * p->page;
	if (keys > INT32_MAX)
		keys = INT32_MAX;
	const int64_t chunks = (keys + (int64_t)chunk * BLOCK - 1) / ((int64_t)chunk * BLOCK);
	return chunks > 1 ? chunks * p->total_q * p->h_q : 0;
}

struct pieces plan_chunked(const struct problem *p, int32_t chunk, int64_t i)
{
	const struct blocks r = request_blocks(p, i);
	const int64_t step = p->total_q * p->h_q;
	const int64_t first = r.begin / chunk * step + request_q_begin(p, i) * p->h_q;
	return (struct pieces){.req = i, .n = plan_chunks(chunk, r), .first = first, .second = first + step, .step = step};
}

bool plan_next_piece(const struct problem *p, int32_t chunk, const struct part *row, int64_t part_no,
                     struct piece *piece)
{
	if (row->begin_req == PLAN_IDLE)
		return false;
	struct blocks r = {0, 0};
	if (piece->req < 0) {
		piece->req = row->begin_req;
		piece->begin = row->begin_block;
		r = request_blocks(p, piece->req);
	} else {
		r = request_blocks(p, piece->req);
		const int64_t stop = piece->req == row->end_req ? row->end_block : r.end;
		piece->begin = piece->end;
		if (piece->end >= stop) { /* on to the next request */
			if (++piece->req > row->end_req)
				return false;
			r = request_blocks(p, piece->req);
			piece->begin = r.begin;
		}
	}
	piece->end = piece->req == row->end_req ? row->end_block : r.end;
	if (chunk > 0) {
		const int64_t border = (piece->begin / chunk + 1) * chunk;
		if (piece->end > border)
			piece->end = border;
		const bool whole = plan_chunks(chunk, r) == 1;
		piece->row = whole ? -1 : (piece->begin / chunk * p->total_q + request_q_begin(p, piece->req)) * p->h_q;
		return true;
	}
	const bool is_first = piece->req == row->begin_req, is_last = piece->req == row->end_req;
	const bool whole = !(is_first && row->first_split) && !(is_last && row->last_split);
	const int64_t slot = 2 * part_no + !(is_first && row->begin_split > 0); /* continues : starts here */
	piece->row = whole ? -1 : slot * p->s_q * p->h_q;
	return true;
}

bool plan_started(const struct problem *p, const struct part *row, int64_t part_no, const int32_t *splits,
                  struct pieces *pieces)
{
	if (row->begin_req == PLAN_IDLE || !row->last_split || (row->begin_req == row->end_req && row->begin_split > 0))
		return false;
	const int64_t rows = p->s_q * p->h_q; /* of one slot */
	*pieces = (struct pieces){.req = row->end_req,
	                          .n = splits[row->end_req + 1] - splits[row->end_req],
	                          .first = (2 * part_no + 1) * rows,
	                          .second = (2 * part_no + 2) * rows,
	                          .step = 2 * rows};
	return true;
}
