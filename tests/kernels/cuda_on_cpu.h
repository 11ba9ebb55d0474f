// A kernel of csrc/ as a function on the CPU: what CUDA adds to C++, and a launch that runs every thread.
//
// A kernel without barriers runs its threads one after another. One with barriers (LAUNCH_TOGETHER) has a real thread
// for each, so that its barriers and shuffles are what they are on a GPU. Compiled in front of the source file.
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define KVGATE_ON_CPU 1

struct Dim {
    unsigned x;
};
static thread_local Dim threadIdx, blockIdx, blockDim, gridDim;

// The threads of a block that run together, in groups of 32 as a GPU's.
struct Together {
    explicit Together(unsigned count) : all(count), lanes(count) {
        for (unsigned first = 0; first < count; first += 32)
            warps.push_back(std::make_unique<std::barrier<>>(count - first < 32 ? count - first : 32));
    }
    std::barrier<> all;
    std::vector<std::unique_ptr<std::barrier<>>> warps;
    std::vector<uint64_t> lanes;
};
static Together* together = nullptr;

static inline void __syncthreads() { together->all.arrive_and_wait(); }

template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    auto& warp = *together->warps[threadIdx.x / 32];
    together->lanes[threadIdx.x] = bits;
    warp.arrive_and_wait();
    bits = together->lanes[threadIdx.x ^ (unsigned)mask];
    warp.arrive_and_wait();  // before anybody writes the next value
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class Kernel, class Argument>
static void launch_in_turn(Kernel kernel, unsigned blocks, unsigned threads, const Argument& argument) {
    gridDim.x = blocks;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) kernel(argument);
}

template <class Kernel, class Argument>
static void launch_together(Kernel kernel, unsigned blocks, unsigned threads, const Argument& argument) {
    Together group(threads);
    together = &group;
    std::vector<std::thread> running;
    for (unsigned thread = 0; thread < threads; thread++)
        running.emplace_back([=, &argument, &group] {
            gridDim.x = blocks;
            blockDim.x = threads;
            threadIdx.x = thread;
            for (unsigned block = 0; block < blocks; block++) {
                blockIdx.x = block;
                kernel(argument);
                group.all.arrive_and_wait();
            }
        });
    for (auto& thread : running) thread.join();
    together = nullptr;
}
