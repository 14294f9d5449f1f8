/* SPDX-License-Identifier: MIT */
#include "svg.h"

#include <math.h>
#include <stdio.h>

#define INK   "#1f2933"
#define MUTED "#7b8794"
#define GRID  "#e4e7eb"
#define PAPER "#ffffff"

static const char *const palette[] = {"#2563eb", "#ea580c", "#059669", "#c026d3", "#b45309",
                                      "#0891b2", "#dc2626", "#4f46e5", "#65a30d", "#db2777"};
enum { COLOURS = sizeof(palette) / sizeof(*palette) };

/* ---- drawing --------------------------------------------------------------------------------------------------- */

static void put_escaped(FILE *f, const char *text)
{
	for (; *text; text++) {
		if (*text == '&')
			fputs("&amp;", f);
		else if (*text == '<')
			fputs("&lt;", f);
		else if (*text == '>')
			fputs("&gt;", f);
		else if ((unsigned char)*text >= 0x20)
			fputc(*text, f);
	}
}

struct text_style {
	double size;
	const char *colour, *anchor; /* anchor: start, middle, end */
	int bold;
};

static void put_text(FILE *f, double x, double y, struct text_style s, const char *text)
{
	fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%g\" fill=\"%s\" text-anchor=\"%s\"%s>", x, y, s.size, s.colour,
	        s.anchor, s.bold ? " font-weight=\"600\"" : "");
	put_escaped(f, text);
	fputs("</text>\n", f);
}

static FILE *open_svg(const char *path, int width, int height, const char *title, const char *subtitle)
{
	FILE *f = fopen(path, "w");
	if (!f)
		return NULL;
	fprintf(f,
	        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
	        "font-family=\"Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\">\n"
	        "<rect width=\"100%%\" height=\"100%%\" fill=\"" PAPER "\"/>\n",
	        width, height, width, height);
	put_text(f, 32, 40, (struct text_style){20, INK, "start", 1}, title);
	put_text(f, 32, 63, (struct text_style){13, MUTED, "start", 0}, subtitle);
	return f;
}

static bool close_svg(FILE *f)
{
	fputs("</svg>\n", f);
	const bool ok = !ferror(f);
	return fclose(f) == 0 && ok;
}

/* ---- roofline -------------------------------------------------------------------------------------------------- */

enum { ROOF_W = 1140, PLOT_L = 84, PLOT_T = 104, PLOT_W = 560, PLOT_H = 440, LIST_X = 684, LIST_ROW = 24 };

/* Both axes are logarithmic; low and high are powers of ten times 1, 2 or 5. */
struct axes {
	double x_low, x_high, y_low, y_high;
};

static double round_down_125(double v)
{
	const double decade = pow(10, floor(log10(v)));
	return v / decade >= 5 ? 5 * decade : v / decade >= 2 ? 2 * decade : decade;
}

static double round_up_125(double v)
{
	const double decade = pow(10, floor(log10(v)));
	return v <= decade ? decade : v <= 2 * decade ? 2 * decade : v <= 5 * decade ? 5 * decade : 10 * decade;
}

static double x_of(const struct axes *a, double intensity)
{
	return PLOT_L + PLOT_W * log(intensity / a->x_low) / log(a->x_high / a->x_low);
}

static double y_of(const struct axes *a, double tflops)
{
	return PLOT_T + PLOT_H - PLOT_H * log(tflops / a->y_low) / log(a->y_high / a->y_low);
}

static struct axes choose_axes(const struct roof_chart *c)
{
	double x0 = 10, x1 = 100, y0 = c->tflops > 0 ? c->tflops / 4 : 1e300, y1 = c->tflops;
	const double ridge = c->gbs > 0 ? c->tflops * 1000 / c->gbs : 0;
	if (ridge > 0) {
		x0 = fmin(x0, ridge / 4);
		x1 = fmax(x1, ridge * 4);
	}
	for (int i = 0; i < c->count; i++) {
		x0 = fmin(x0, c->points[i].intensity / 1.5);
		x1 = fmax(x1, c->points[i].intensity * 1.5);
		y0 = fmin(y0, c->points[i].tflops / 1.5);
		y1 = fmax(y1, c->points[i].tflops);
	}
	if (y0 > y1)
		y0 = y1 / 10;
	return (struct axes){round_down_125(x0), round_up_125(x1), round_down_125(y0), round_up_125(y1 * 1.15)};
}

static void draw_axes(FILE *f, const struct axes *a)
{
	static const double steps[] = {1, 2, 5};
	char label[32];
	for (int axis = 0; axis < 2; axis++) {
		const double low = axis ? a->y_low : a->x_low, high = axis ? a->y_high : a->x_high;
		for (double decade = pow(10, floor(log10(low))); decade <= high * 1.001; decade *= 10)
			for (int i = 0; i < 3; i++) {
				const double v = decade * steps[i];
				if (v < low * 0.999 || v > high * 1.001)
					continue;
				const double x = axis ? PLOT_L : x_of(a, v), y = axis ? y_of(a, v) : PLOT_T + PLOT_H;
				fprintf(f, "<path d=\"M%.1f %.1f %s%d\" stroke=\"" GRID "\" fill=\"none\"/>\n", x, y, axis ? "h" : "v",
				        axis ? PLOT_W : -PLOT_H);
				snprintf(label, sizeof(label), "%g", v);
				if (axis)
					put_text(f, x - 10, y + 4, (struct text_style){12, MUTED, "end", 0}, label);
				else
					put_text(f, x, y + 20, (struct text_style){12, MUTED, "middle", 0}, label);
			}
	}
	put_text(f, PLOT_L + PLOT_W / 2.0, PLOT_T + PLOT_H + 46, (struct text_style){13, INK, "middle", 0},
	         "arithmetic intensity, FLOP per byte of memory traffic");
	put_text(f, PLOT_L - 44, PLOT_T - 12, (struct text_style){13, INK, "start", 0}, "TFLOP/s");
}

/* The area under min(bandwidth * intensity, peak), its edge, and the two limits by name. */
static void draw_roof(FILE *f, const struct axes *a, const struct roof_chart *c)
{
	char text[96];
	const double ridge = c->tflops * 1000 / c->gbs, y_left = c->gbs * a->x_low / 1000;
	const double x0 = y_left < a->y_low ? a->y_low * 1000 / c->gbs : a->x_low; /* where the slope enters the plot */
	const double left = x_of(a, x0), bottom = PLOT_T + PLOT_H, top = y_of(a, c->tflops), right = x_of(a, a->x_high);
	const double start = y_of(a, x0 * c->gbs / 1000), bend = x_of(a, ridge);
	fprintf(f, "<path d=\"M%.1f %.1f L%.1f %.1f L%.1f %.1f H%.1f V%.1f Z\" fill=\"#eff6ff\"/>\n", left, bottom, left,
	        start, bend, top, right, bottom);
	draw_axes(f, a);
	fprintf(f,
	        "<path d=\"M%.1f %.1f L%.1f %.1f H%.1f\" fill=\"none\" stroke=\"" INK
	        "\" stroke-width=\"2.5\" stroke-linejoin=\"round\"/>\n",
	        left, start, bend, top, right);
	snprintf(text, sizeof(text), "%s %.3g TFLOP/s", c->tflops_name, c->tflops);
	put_text(f, right - 6, top - 9, (struct text_style){12.5, INK, "end", 1}, text);
	snprintf(text, sizeof(text), "%s %.4g GB/s", c->gbs_name, c->gbs);
	const double angle = atan2(top - start, bend - left) * 180 / 3.14159265358979, mx = (left + bend) / 2,
	             my = (start + top) / 2;
	fprintf(f, "<g transform=\"translate(%.1f %.1f) rotate(%.2f)\">", mx, my, angle);
	put_text(f, 0, -9, (struct text_style){12.5, INK, "middle", 1}, text);
	fputs("</g>\n", f);
}

static void draw_point(FILE *f, double x, double y, double radius, int number)
{
	char text[16];
	snprintf(text, sizeof(text), "%d", number + 1);
	fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\" stroke=\"" PAPER "\" stroke-width=\"1.5\"/>\n",
	        x, y, radius, palette[number % COLOURS]);
	put_text(f, x, y + radius * 0.42, (struct text_style){radius * 1.15, PAPER, "middle", 1}, text);
}

bool svg_roofline(const char *path, const struct roof_chart *c)
{
	const int list = PLOT_T + 34 + c->count * LIST_ROW + 30, plot = PLOT_T + PLOT_H + 72;
	FILE *f = open_svg(path, ROOF_W, list > plot ? list : plot, c->title, c->subtitle);
	if (!f)
		return false;
	const struct axes a = choose_axes(c);
	const bool roof = c->gbs > 0 && c->tflops > 0;
	if (roof)
		draw_roof(f, &a, c);
	else
		draw_axes(f, &a);
	fprintf(f, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#cbd2d9\"/>\n", PLOT_L,
	        PLOT_T, PLOT_W, PLOT_H);

	const struct text_style head = {12, MUTED, "start", 0}, head_end = {12, MUTED, "end", 0};
	put_text(f, LIST_X, PLOT_T + 8, head, "case");
	put_text(f, ROOF_W - 108, PLOT_T + 8, head_end, "TFLOP/s");
	if (roof)
		put_text(f, ROOF_W - 28, PLOT_T + 8, head_end, "of the limit");
	for (int i = 0; i < c->count; i++) {
		const struct roof_point *p = &c->points[i];
		const double x = x_of(&a, p->intensity), y = PLOT_T + 34 + i * LIST_ROW;
		char text[64];
		if (roof) { /* how far below its limit */
			const double limit = fmin(p->intensity * c->gbs / 1000, c->tflops);
			fprintf(f, "<path d=\"M%.1f %.1f V%.1f\" stroke=\"%s\" stroke-dasharray=\"2 3\"/>\n", x,
			        y_of(&a, p->tflops), y_of(&a, limit), palette[i % COLOURS]);
		}
		draw_point(f, x, y_of(&a, p->tflops), 9, i);
		draw_point(f, LIST_X + 8, y - 4, 8, i);
		put_text(f, LIST_X + 24, y, (struct text_style){13, INK, "start", 0}, p->label);
		snprintf(text, sizeof(text), "%.3g", p->tflops);
		put_text(f, ROOF_W - 108, y, (struct text_style){13, INK, "end", 0}, text);
		snprintf(text, sizeof(text), "%.0f %%", p->roof_pct);
		if (p->roof_pct >= 0)
			put_text(f, ROOF_W - 28, y, (struct text_style){13, INK, "end", 1}, text);
	}
	return close_svg(f);
}

/* ---- Gantt chart of a plan ------------------------------------------------------------------------------------- */

enum { GANTT_W = 1200, GANTT_L = 84, GANTT_R = 32, GANTT_T = 104 };

/* A step for about eight ticks: 1, 2 or 5 times a power of ten. */
static int64_t tick_step(int64_t longest)
{
	const double step = round_up_125((double)longest / 8);
	return step < 1 ? 1 : (int64_t)step;
}

/* Neighbours on the axis get colours far apart: hue by the golden angle, three shades. */
static void put_fill(FILE *f, int32_t request)
{
	const double hue = fmod(request * 137.508 + 212, 360);
	static const int lightness[] = {74, 66, 80};
	fprintf(f, "fill=\"hsl(%.0f,58%%,%d%%)\"", hue, lightness[request % 3]);
}

bool svg_gantt(const char *path, const struct gantt_chart *c)
{
	const double row = c->parts <= 24 ? 26 : c->parts <= 64 ? 14 : 8, gap = row > 10 ? 4 : 1.5;
	const double bottom = GANTT_T + c->parts * row, width = GANTT_W - GANTT_L - GANTT_R;
	const double unit = width / (double)(c->longest > 0 ? c->longest : 1);
	FILE *f = open_svg(path, GANTT_W, (int)bottom + 92, c->title, c->subtitle);
	if (!f)
		return false;
	char text[64];
	fputs("<defs><pattern id=\"cut\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
	      "patternTransform=\"rotate(45)\"><path d=\"M0 0V6\" stroke=\"#1f2933\" stroke-opacity=\".28\" "
	      "stroke-width=\"2.4\"/></pattern></defs>\n",
	      f);
	for (int64_t t = 0; t <= c->longest; t += tick_step(c->longest)) {
		const double x = GANTT_L + (double)t * unit;
		fprintf(f, "<path d=\"M%.1f %d V%.1f\" stroke=\"" GRID "\"/>\n", x, GANTT_T - 6, bottom + 4);
		snprintf(text, sizeof(text), "%lld", (long long)t);
		put_text(f, x, bottom + 22, (struct text_style){12, MUTED, "middle", 0}, text);
	}
	put_text(f, GANTT_L + width / 2, bottom + 44, (struct text_style){13, INK, "middle", 0},
	         "blocks of 64 cached tokens, in the order in which a worker walks them");
	put_text(f, GANTT_L - 12, GANTT_T - 14, (struct text_style){12, MUTED, "end", 0}, "worker");
	const int every = c->parts <= 32 ? 1 : c->parts <= 64 ? 4 : 8;
	for (int p = 0; p < c->parts; p += every) {
		snprintf(text, sizeof(text), "%d", p);
		put_text(f, GANTT_L - 12, GANTT_T + p * row + (row - gap) / 2 + 4, (struct text_style){12, MUTED, "end", 0},
		         text);
	}
	for (int64_t i = 0; i < c->count; i++) {
		const struct gantt_piece *p = &c->pieces[i];
		const double x = GANTT_L + (double)p->begin * unit, y = GANTT_T + p->part * row;
		const double w = (double)p->blocks * unit, inner = w > 3 ? w - 1 : w, h = row - gap;
		fprintf(f, "<g><title>request %d, %lld blocks", p->request, (long long)p->blocks);
		if (p->splits > 1)
			fprintf(f, ", piece %d of %d", p->split + 1, p->splits);
		fprintf(f, "</title><rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" rx=\"2\" ", x, y, inner, h);
		put_fill(f, p->request);
		fputs("/>", f);
		if (p->splits > 1)
			fprintf(f, "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.1f\" rx=\"2\" fill=\"url(#cut)\"/>", x, y,
			        inner, h);
		fputs("</g>\n", f);
		if (h < 9)
			continue;
		if (p->splits > 1 && w > 62)
			snprintf(text, sizeof(text), "%d (%d/%d)", p->request, p->split + 1, p->splits);
		else
			snprintf(text, sizeof(text), "%d", p->request);
		if (w > 24)
			put_text(f, x + w / 2, y + h / 2 + 4, (struct text_style){h > 16 ? 12 : 9, INK, "middle", 0}, text);
	}
	if (c->mean > 0) { /* the share of an average worker: where all rows would end if work came in grains of zero */
		const double x = GANTT_L + c->mean * unit;
		fprintf(f, "<path d=\"M%.1f %d V%.1f\" stroke=\"#dc2626\" stroke-width=\"1.5\" stroke-dasharray=\"5 4\"/>\n", x,
		        GANTT_T - 8, bottom + 4);
		put_text(f, x > GANTT_W - 140 ? x - 4 : x + 4, GANTT_T - 14,
		         (struct text_style){12, "#dc2626", x > GANTT_W - 140 ? "end" : "start", 0}, "average");
	}
	const double y = bottom + 64;
	fprintf(f, "<rect x=\"%d\" y=\"%.1f\" width=\"18\" height=\"12\" rx=\"2\" fill=\"hsl(212,62%%,74%%)\"/>", GANTT_L,
	        y);
	put_text(f, GANTT_L + 26, y + 10.5, (struct text_style){12, MUTED, "start", 0}, "whole request");
	fprintf(f,
	        "<rect x=\"%d\" y=\"%.1f\" width=\"18\" height=\"12\" rx=\"2\" fill=\"hsl(212,62%%,74%%)\"/>"
	        "<rect x=\"%d\" y=\"%.1f\" width=\"18\" height=\"12\" rx=\"2\" fill=\"url(#cut)\"/>",
	        GANTT_L + 132, y, GANTT_L + 132, y);
	put_text(f, GANTT_L + 158, y + 10.5, (struct text_style){12, MUTED, "start", 0},
	         "piece of a request that several workers share; combine merges the pieces");
	return close_svg(f);
}
