/* SPDX-License-Identifier: MIT
 *
 * wgmma.mma_async m64nNk16, fp32 accumulators (PTX ISA, "wgmma.mma_async").  Macros, because the type and the transpose
 * bits are immediates.  `d` is a float array of N / 2 registers a thread; `add` 0 overwrites it, 1 adds to it.
 * TYPE is "bf16" or "f16"; ta, tb: 0 for a K-major operand, 1 for an MN-major one.
 *
 * Accumulator fragment: thread t of the warpgroup (warp w, lane l) holds, for j < N / 8,
 *     d[4j], d[4j+1] = D[16w + l/4    ][8j + 2(l%4)], [.. + 1]
 *     d[4j+2], d[4j+3] = D[16w + l/4 + 8][ same columns ] */
#ifndef FMLA_WGMMA_CUH
#define FMLA_WGMMA_CUH

#include "ptx.cuh"

#define ACC4(d, i)  "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3])
#define ACC16(d, i) ACC4(d, i), ACC4(d, (i) + 4), ACC4(d, (i) + 8), ACC4(d, (i) + 12)
#define ACC64(d, i) ACC16(d, i), ACC16(d, (i) + 16), ACC16(d, (i) + 32), ACC16(d, (i) + 48)

/* clang-format off */
/* A and B from shared memory. */
#define WGMMA_N8_SS(TYPE, d, a, b, add, ta, tb) \
	asm volatile("{\n.reg .pred p;\n" \
				 "setp.ne.b32 p, %6, 0;\n" \
				 "wgmma.mma_async.sync.aligned.m64n8k16.f32." TYPE "." TYPE " " \
				 "{%0, %1, %2, %3}" \
				 ", %4, %5, p, 1, 1, " #ta ", " #tb ";\n}\n" \
				 : ACC4(d, 0) \
				 : "l"(a), "l"(b), "r"((int)(add)))

#define WGMMA_N16_SS(TYPE, d, a, b, add, ta, tb) \
	asm volatile("{\n.reg .pred p;\n" \
				 "setp.ne.b32 p, %10, 0;\n" \
				 "wgmma.mma_async.sync.aligned.m64n16k16.f32." TYPE "." TYPE " " \
				 "{%0, %1, %2, %3, %4, %5, %6, %7}" \
				 ", %8, %9, p, 1, 1, " #ta ", " #tb ";\n}\n" \
				 : ACC4(d, 0), ACC4(d, 4) \
				 : "l"(a), "l"(b), "r"((int)(add)))

#define WGMMA_N32_SS(TYPE, d, a, b, add, ta, tb) \
	asm volatile("{\n.reg .pred p;\n" \
				 "setp.ne.b32 p, %18, 0;\n" \
				 "wgmma.mma_async.sync.aligned.m64n32k16.f32." TYPE "." TYPE " " \
				 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}" \
				 ", %16, %17, p, 1, 1, " #ta ", " #tb ";\n}\n" \
				 : ACC16(d, 0) \
				 : "l"(a), "l"(b), "r"((int)(add)))

#define WGMMA_N64_SS(TYPE, d, a, b, add, ta, tb) \
	asm volatile("{\n.reg .pred p;\n" \
				 "setp.ne.b32 p, %34, 0;\n" \
				 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " \
				 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
				 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}" \
				 ", %32, %33, p, 1, 1, " #ta ", " #tb ";\n}\n" \
				 : ACC16(d, 0), ACC16(d, 16) \
				 : "l"(a), "l"(b), "r"((int)(add)))

#define WGMMA_N256_SS(TYPE, d, a, b, add, ta, tb) \
	asm volatile("{\n.reg .pred p;\n" \
				 "setp.ne.b32 p, %130, 0;\n" \
				 "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " " \
				 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
				 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
				 " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
				 " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63," \
				 " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79," \
				 " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95," \
				 " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111," \
				 " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}" \
				 ", %128, %129, p, 1, 1, " #ta ", " #tb ";\n}\n" \
				 : ACC64(d, 0), ACC64(d, 64) \
				 : "l"(a), "l"(b), "r"((int)(add)))

/* A from registers: a[0..3] = A[l/4][2(l%4)..], A[l/4+8][..], A[l/4][8 + 2(l%4)..], A[l/4+8][8 + ..] of each warp. */
#define WGMMA_N256_RS(TYPE, d, a, b, add, tb) \
	asm volatile("{\n.reg .pred p;\n" \
				 "setp.ne.b32 p, %133, 0;\n" \
				 "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " " \
				 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15," \
				 " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31," \
				 " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47," \
				 " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63," \
				 " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79," \
				 " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95," \
				 " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111," \
				 " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}" \
				 ", {%128, %129, %130, %131}, %132, p, 1, 1, " #tb ";\n}\n" \
				 : ACC64(d, 0), ACC64(d, 64) \
				 : "r"((a)[0]), "r"((a)[1]), "r"((a)[2]), "r"((a)[3]), "l"(b), "r"((int)(add)))

/* clang-format on */
#endif
