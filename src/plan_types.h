/* SPDX-License-Identifier: MIT
 *
 * The units of a plan: blocks and parts.  Also compiled as OpenCL C (src/portable), so it includes nothing; the
 * includer has int32_t. */
#ifndef FMLA_PLAN_TYPES_H
#define FMLA_PLAN_TYPES_H

enum {
	BLOCK = 64,            /* tokens per planning block and per GPU tile; independent of the page size          */
	D_V = 512,             /* latent values: all of V, the first part of K                                      */
	D_ROPE = 64,           /* rope values behind them                                                          */
	D_QK = 576,            /* D_V + D_ROPE; problems with d_qk 512 have no rope part                            */
	PLAN_CHUNK = 64,       /* blocks of a piece in batch-invariant mode: fixed, or results would depend on the batch */
	PLAN_FIELDS = 8,       /* int32 fields of a plan row, see struct part                                      */
	PLAN_TAG = 0x464d4c31, /* "FML1": marks rows that fmla_plan wrote                                      */
	PLAN_IDLE = 0x7fffffff /* begin_req of a part without work                                             */
};

/* What a backend knows about its own costs, in blocks. */
struct plan_costs {
	int32_t overhead;    /* price of starting a request                                           */
	int32_t min_blocks;  /* fewest blocks worth a part of their own, >= 1                         */
	int32_t max_snap;    /* most blocks a border may move to avoid a split                        */
	int32_t chunk;       /* batch-invariant mode: borders only at multiples of this; 0: anywhere  */
	int32_t whole;       /* blocks by which a part may exceed the equal share if requests are dealt out whole */
	int32_t whole_16ths; /* the same in sixteenths of the share; the larger counts                */
	int32_t even;        /* 1: so too if each request is dealt out in equal pieces, one a part    */
};

/* One row of a plan: the walk of one CTA or one thread, over blocks of BLOCK tokens, requests in order.  Starts with
 * block `begin_block` of request `begin_req`, ends before block `end_block` of request `end_req`. */
struct part {
	int32_t begin_req;   /* PLAN_IDLE: no work                                                     */
	int32_t end_req;     /* inclusive                                                              */
	int32_t begin_block; /* in begin_req; absolute, so a window may make it > 0 for a first piece  */
	int32_t end_block;   /* in end_req, exclusive                                                  */
	int32_t begin_split; /* number of the first piece among the splits of begin_req                */
	int32_t first_split; /* 1: begin_req is also worked on by other parts                          */
	int32_t last_split;  /* 1: so is end_req                                                       */
	int32_t tag;         /* PLAN_TAG                                                               */
};

#endif
