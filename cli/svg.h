/* SPDX-License-Identifier: MIT
 *
 * svg.h - the two pictures of the command: the roofline of a benchmark and the Gantt chart of a plan. */
#ifndef CLI_SVG_H
#define CLI_SVG_H

#include <stdbool.h>
#include <stdint.h>

struct roof_point {
	char label[64];
	double intensity; /* FLOP per byte of least traffic */
	double tflops;
	double roof_pct; /* < 0: no roof is known */
};

struct roof_chart {
	const char *title, *subtitle;
	double gbs, tflops; /* this machine's limits; 0: not known, no roof is drawn */
	const char *gbs_name, *tflops_name;
	const struct roof_point *points;
	int count;
};

bool svg_roofline(const char *path, const struct roof_chart *chart);

struct gantt_piece {
	int32_t part;
	int32_t request;
	int64_t begin, blocks; /* begin: blocks that the part does before */
	int32_t split, splits; /* piece `split` of `splits`; splits 1: the whole request */
};

struct gantt_chart {
	const char *title, *subtitle;
	int32_t parts;
	int64_t longest; /* blocks of the longest part */
	double mean;     /* blocks of an average part  */
	const struct gantt_piece *pieces;
	int64_t count;
};

bool svg_gantt(const char *path, const struct gantt_chart *chart);

#endif
