/* amx.h - the micro-kernel over pairs of bf16 on the tile registers of a processor that has AMX.
 *
 * Whether there is one is asked at run time: CPUID (AMX-TILE, AMX-BF16), the system's permission to use the tiles'
 * state, and a self-check of all forms against a plain loop. Where any of these fails, amx_usable() is false and
 * nothing here runs. AUTOSP_AMX=0 in the environment turns it off.
 *
 * The operands are those of micro_rows_pairs(), but that a row of A has its pairs side by side: a tile of B is rows of
 * pairs with columns side by side, which is how the other micro-kernel reads it too.
 */
#ifndef AUTOSP_DEVICE_CPU_AMX_H
#define AUTOSP_DEVICE_CPU_AMX_H

#include "device/cpu/micro.h"

/* Pairs that one instruction sums before it adds them to C. A sum over pairs that begins at a multiple of these has the
 * same bits whichever zeros are in front of it. */
enum { AMX_PAIRS = 16 };

/* May and shall products go through the tiles? Found out by the first call of the process; a failed self-check makes
 * it print one warning. */
bool amx_usable(void);

/* The self-check alone, for machines that have AMX: every mode and kind of remainder on small integers, whose sums are
 * exact in any order. The caller's thread must not be between amx_begin() and amx_end(). */
bool amx_check(void);

/* Configures the calling thread's tiles, which other code in the thread (oneDNN) does too, and gives them back. */
void amx_begin(void);
void amx_end(void);

/* micro_rows_pairs() with ts = 1: rows of A rs words apart, lanes nv * 16 (nv 1 or 2); between amx_begin() and
 * amx_end(). Each element's terms are added in one order whatever the other rows and lanes: 16 pairs at a time, of
 * which the processor adds first and second halves apart; with MICRO_RESCALE to C * factor, with MICRO_ADD to C. */
void amx_rows_pairs(int64_t rows, int nv, int64_t nt, const float *a, int64_t rs, const float *b, int64_t ldb, float *c,
                    int64_t ldc, micro_mode mode, const float *factor);

#endif
