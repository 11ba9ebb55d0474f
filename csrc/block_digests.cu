// The crc64nvme of each MiB of chunks, where they lie on this GPU: what a copy there is held against.
//
// A CRC is linear: that of two runs of bytes is the second one's, XOR the first one's multiplied by x^8 for every byte
// of the second, modulo the polynomial. So each thread takes a unit of a block, multiplies for what follows the unit in
// the block, and XORs the product into the block's digest. Units need no alignment, and no order.
// Twin: kvgate/memory/digest.py.
#include "platform.cuh"

// Bits are reflected: the highest one is x^0.
#define POLYNOMIAL 0x9a6c9329ac4bc9b5ull
#define UNIT 1024

struct Run {
    u64 address;
    u32 nbytes;
    u32 block;  // which digest the run belongs to
    u32 after;  // bytes that follow in the block
    u32 unused;
};

struct BlockDigests {
    Divider tiles;  // of the largest run; a tile has a unit for each thread of a block
    u32 run_count;
    u64 powers;   // u64[2][UNIT]: x^8 to the i-th, then x^8 to the (UNIT * i)-th
    u64 runs;     // Run[run_count]
    u64 digests;  // u64 a block of bytes; 0 before
};

KV_INLINE u64 times_x(u64 a) { return (a >> 1) ^ (POLYNOMIAL & (0 - (a & 1))); }

KV_INLINE u64 product(u64 a, u64 b) {
    u64 result = 0;
    for (u32 bit = 0; bit < 64; bit++) {
        result ^= b & (0 - (a >> 63));
        a <<= 1;
        b = times_x(b);
    }
    return result;
}

// The digest of `nbytes` from `at` on, eight bytes a step where they are aligned. table[k][i] is what the byte i leaves
// after k more bytes of zero.
KV_INLINE u64 crc_of(const u64 (*table)[256], const u8* at, u32 nbytes) {
    u64 crc = ~0ull;
    for (; nbytes != 0 && ((u64)at & 7) != 0; nbytes--) crc = (crc >> 8) ^ table[0][(crc ^ *at++) & 255];
    for (; nbytes >= 8; nbytes -= 8, at += 8) {
        u64 word = crc ^ *(const u64*)at;
        crc = table[7][word & 255] ^ table[6][(word >> 8) & 255] ^ table[5][(word >> 16) & 255] ^
              table[4][(word >> 24) & 255] ^ table[3][(word >> 32) & 255] ^ table[2][(word >> 40) & 255] ^
              table[1][(word >> 48) & 255] ^ table[0][word >> 56];
    }
    for (; nbytes != 0; nbytes--) crc = (crc >> 8) ^ table[0][(crc ^ *at++) & 255];
    return ~crc;
}

extern "C" __global__ void digest_blocks(BlockDigests job) {
    __shared__ u64 table[8][256];
    for (u32 byte = threadIdx.x; byte < 256; byte += blockDim.x) {
        u64 left = byte;
        for (u32 bit = 0; bit < 8; bit++) left = times_x(left);
        table[0][byte] = left;
    }
    __syncthreads();
    for (u32 byte = threadIdx.x; byte < 256; byte += blockDim.x) {
        for (u32 k = 1; k < 8; k++) {
            u64 left = table[k - 1][byte];
            table[k][byte] = (left >> 8) ^ table[0][left & 255];
        }
    }
    __syncthreads();
    const u64* powers = (const u64*)job.powers;
    u32 work_count = job.run_count * job.tiles.divisor;
    for (u32 work = blockIdx.x; work < work_count; work += gridDim.x) {
        Divided at = divide(work, job.tiles);
        const Run run = ((const Run*)job.runs)[at.quotient];
        u64 start = ((u64)at.rest * blockDim.x + threadIdx.x) * UNIT;
        if (start >= run.nbytes) continue;
        u32 nbytes = run.nbytes - (u32)start < UNIT ? run.nbytes - (u32)start : UNIT;
        u64 digest = crc_of(table, (const u8*)(run.address + start), nbytes);
        u32 after = run.after + run.nbytes - (u32)start - nbytes;
        if (after % UNIT != 0) digest = product(digest, powers[after % UNIT]);
        if (after >= UNIT) digest = product(digest, powers[UNIT + after / UNIT]);
        atomicXor((u64*)job.digests + run.block, digest);
    }
}
