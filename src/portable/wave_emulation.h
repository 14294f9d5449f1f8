/* SPDX-License-Identifier: MIT
 *
 * wave_emulation.h - one lane's part of D += A B, for the emulator; a template as decode_wave.h. */
static inline pk_sums PK_NAME(pk_mma)(pk_sums d, const pk_four *a, const pk_four *b, int lane)
{
	for (int j = 0; j < 4; j++)
		for (int k = 0; k < 16; k++) {
			const uint32_t x = (uint16_t)a[PK_D_ROW(lane, j) + 16 * (k / 4)][k % 4];
			const uint32_t y = (uint16_t)b[PK_D_COLUMN(lane, j) + 16 * (k / 4)][k % 4];
			d[j] = PK_FMA(PK_LOW(x), PK_LOW(y), d[j]);
		}
	return d;
}
