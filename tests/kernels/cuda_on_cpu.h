// A kernel of csrc/ as a function on the CPU: what CUDA adds to C++, and a launch that runs every thread.
//
// A kernel without shuffles and barriers runs its threads one after another. One with them (launch_together) has a stack
// for each thread of a block, and they take turns at every one. Compiled in front of the source file.
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define ENTER_STACK(kept, bottom, size) __sanitizer_start_switch_fiber(kept, bottom, size)
#define ENTERED_STACK(kept, bottom, size) __sanitizer_finish_switch_fiber(kept, bottom, size)
#else
#define ENTER_STACK(kept, bottom, size)
#define ENTERED_STACK(kept, bottom, size)
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // one block of threads runs at a time

struct Dim {
    unsigned x;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

// One thread of the running block.
struct Turn {
    static constexpr size_t STACK_NBYTES = 1 << 18;
    ucontext_t context;
    std::unique_ptr<char[]> stack = std::unique_ptr<char[]>(new char[STACK_NBYTES]);
    void* kept = nullptr;  // AddressSanitizer's
    bool done = false;
    unsigned shuffles = 0;
    uint64_t shown[2] = {0, 0};  // at an even shuffle, and at an odd one, while others still read the one before
};

struct RunningBlock {
    ucontext_t scheduler;
    void* kept = nullptr;
    const void* bottom = nullptr;
    size_t nbytes = 0;
    std::vector<Turn> turns;
    void (*body)(void*) = nullptr;
    void* given = nullptr;
};
static RunningBlock* running = nullptr;

static void begin_turn() {
    ENTERED_STACK(nullptr, &running->bottom, &running->nbytes);
    running->body(running->given);
    running->turns[threadIdx.x].done = true;
    ENTER_STACK(nullptr, running->bottom, running->nbytes);
    setcontext(&running->scheduler);
}

// Let every other thread come to the same place.
static inline void end_turn() {
    Turn& turn = running->turns[threadIdx.x];
    ENTER_STACK(&turn.kept, running->bottom, running->nbytes);
    swapcontext(&turn.context, &running->scheduler);
    ENTERED_STACK(turn.kept, nullptr, nullptr);
}

template <class T>
static inline T __shfl_xor_sync(unsigned, T value, unsigned mask) {
    Turn& turn = running->turns[threadIdx.x];
    unsigned shuffle = turn.shuffles++;
    std::memcpy(&turn.shown[shuffle % 2], &value, sizeof value);
    unsigned other = threadIdx.x ^ mask;
    end_turn();
    std::memcpy(&value, &running->turns[other].shown[shuffle % 2], sizeof value);
    return value;
}

static inline void __syncthreads() { end_turn(); }

static inline unsigned long long atomicXor(unsigned long long* to, unsigned long long value) {
    unsigned long long before = *to;
    *to ^= value;
    return before;
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
    struct Given {
        Kernel kernel;
        const Argument* argument;
    } given = {kernel, &argument};
    gridDim.x = blocks;
    blockDim.x = threads;
    RunningBlock block;
    running = &block;
    block.turns = std::vector<Turn>(threads);
    block.given = &given;
    block.body = [](void* all) { static_cast<Given*>(all)->kernel(*static_cast<Given*>(all)->argument); };
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        for (Turn& turn : block.turns) {
            turn.done = false;
            turn.shuffles = 0;
            getcontext(&turn.context);
            turn.context.uc_stack.ss_sp = turn.stack.get();
            turn.context.uc_stack.ss_size = Turn::STACK_NBYTES;
            turn.context.uc_link = nullptr;
            makecontext(&turn.context, begin_turn, 0);
        }
        for (bool left = true; left;) {
            left = false;
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) {
                Turn& turn = block.turns[threadIdx.x];
                if (turn.done) continue;
                left = true;
                ENTER_STACK(&block.kept, turn.stack.get(), Turn::STACK_NBYTES);
                swapcontext(&block.scheduler, &turn.context);
                ENTERED_STACK(block.kept, nullptr, nullptr);
            }
        }
    }
    running = nullptr;
}
