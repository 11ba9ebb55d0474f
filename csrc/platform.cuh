// What every kernel stands on: integers, division, and the memory accesses that say how long a byte is wanted.
//
// Includes nothing, so that NVRTC needs no header of any toolkit. A build for the CPU (tests/kernels/cuda_on_cpu.h)
// takes these files as they are; only what stands under __CUDA_ARCH__ is other code there.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "the widths that the names say");

#define KV_INLINE __host__ __device__ __forceinline__

// In front of a loop over an array that shall lie in registers.
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

// Division by a number that a whole launch shares, as one multiplication: exact for every n < 2^31
// (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994). kvgate/kernels/divider.py
// computes the multiplier, 2^32 * (2^shift - divisor) / divisor + 1 with 2^shift >= divisor.
struct Divider {
    u32 divisor;
    u32 multiplier;
    u32 shift;
};

struct Divided {
    u32 quotient;
    u32 rest;
};

KV_INLINE u32 high_product(u32 a, u32 b) { return (u32)(((u64)a * b) >> 32); }

KV_INLINE Divided divide(u32 n, const Divider& by) {
    Divided result;
    result.quotient = (high_product(n, by.multiplier) + n) >> by.shift;
    result.rest = n - result.quotient * by.divisor;
    return result;
}

// What one access moves. The planner has measured that every address of a launch is a multiple of the width.
struct alignas(16) Wide16 {
    u32 word[4];
};
struct alignas(8) Wide8 {
    u32 word[2];
};

// Reads of what nobody reads again soon: past the L1 cache, through the read-only path. No kernel here writes what
// another thread of the same launch reads in this way.
template <class T>
KV_INLINE T load_stream(const T* from) {
    return *from;
}

// Writes of what this GPU does not read soon: first to leave the L2 cache.
template <class T>
KV_INLINE void store_stream(T* to, T value) {
    *to = value;
}

#ifdef __CUDA_ARCH__

template <>
__device__ __forceinline__ Wide16 load_stream(const Wide16* from) {
    Wide16 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(from));
    return v;
}

template <>
__device__ __forceinline__ Wide8 load_stream(const Wide8* from) {
    Wide8 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(from));
    return v;
}

template <>
__device__ __forceinline__ u32 load_stream(const u32* from) {
    u32 v;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}

template <>
__device__ __forceinline__ u16 load_stream(const u16* from) {
    u16 v;
    asm("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(from));
    return v;
}

template <>
__device__ __forceinline__ u8 load_stream(const u8* from) {
    u32 v;
    asm("ld.global.nc.L1::no_allocate.u8 %0, [%1];" : "=r"(v) : "l"(from));
    return (u8)v;
}

template <>
__device__ __forceinline__ void store_stream(Wide16* to, Wide16 v) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

template <>
__device__ __forceinline__ void store_stream(Wide8* to, Wide8 v) {
    asm volatile("st.global.cs.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]) : "memory");
}

template <>
__device__ __forceinline__ void store_stream(u32* to, u32 v) {
    asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

template <>
__device__ __forceinline__ void store_stream(u16* to, u16 v) {
    asm volatile("st.global.cs.u16 [%0], %1;" ::"l"(to), "h"(v) : "memory");
}

template <>
__device__ __forceinline__ void store_stream(u8* to, u8 v) {
    asm volatile("st.global.cs.u8 [%0], %1;" ::"l"(to), "r"((u32)v) : "memory");
}

#endif
