// Runs a block of CUDA threads: each a fiber with a stack of its own, scheduled until all are done.
#include "fibers.h"
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <atomic>
#include <memory>
#include <thread>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace shim {

thread_local Block* block = nullptr;

std::vector<Kernel>& kernels() {
    static auto* all = new std::vector<Kernel>;
    return *all;
}

float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) {
        float out = std::ldexp((float)fraction, -24);
        return sign ? -out : out;
    }
    uint32_t bits = sign | (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | fraction << 13;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

uint16_t float_to_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;                  // NaN
    if (bits >= 0x477ff000) return sign | 0x7c00;                 // rounds to infinity
    if (bits < 0x38800000) {                                      // below 2^-14: steps of 2^-24
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        return sign | (uint16_t)std::nearbyint(std::ldexp(magnitude, 24));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits - (112u << 23)) >> 13);
}

constexpr size_t STACK = 64 << 10;

#ifdef __x86_64__
// Saves what a function must keep, changes the stack, and goes on there (System V).
extern "C" void shim_switch(void** save, void* load);
__asm__(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size shim_switch,.-shim_switch
)");
static void* prepare(char* stack, void (*entry)()) {
    void** top = (void**)((uintptr_t)(stack + STACK) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void*)entry;
    top -= 6;
    memset(top, 0, 6 * sizeof(void*));
    return top;
}
static void change(void** save, void* load) { shim_switch(save, load); }
#else
struct Context {
    ucontext_t saved;
};
static void* prepare(char* stack, void (*entry)()) {
    auto* context = (ucontext_t*)stack;  // at the stack's low end, which it grows towards but never reaches
    getcontext(context);
    context->uc_stack.ss_sp = stack + sizeof(ucontext_t);
    context->uc_stack.ss_size = STACK - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
static void change(void** save, void* load) {
    static thread_local ucontext_t scheduler;
    if (*save == nullptr) *save = &scheduler;
    swapcontext((ucontext_t*)*save, (ucontext_t*)load);
}
#endif

void pause(State state) {
    Fiber* me = block->current;
    me->state = state;
    change(&me->stack_pointer, block->scheduler);
}

static void fiber() {
    Block* mine = block;
    mine->run(mine->arguments);
    pause(State::Done);
    __builtin_trap();
}

// Lets the lanes of a warp go on that all wait for each other.
static bool release_warps(Block& b) {
    bool any = false;
    for (unsigned first = 0; first < b.count; first += 32) {
        unsigned end = std::min(first + 32, b.count);
        for (unsigned i = first; i < end; i++) {
            if (b.fibers[i].state != State::InWarp) continue;
            uint32_t mask = b.fibers[i].mask;
            bool all = true;
            for (unsigned j = first; j < end; j++) {
                const Fiber& other = b.fibers[j];
                if ((mask >> (j - first) & 1) && other.state != State::Done &&
                    !(other.state == State::InWarp && other.mask == mask))
                    all = false;
            }
            if (!all) continue;
            for (unsigned j = first; j < end; j++)
                if ((mask >> (j - first) & 1) && b.fibers[j].state == State::InWarp) b.fibers[j].state = State::Runs;
            any = true;
        }
    }
    return any;
}

// Runs the block's threads to their end; false where they wait for each other for ever.
static bool run_block(Block& b, char* stacks, uint32_t seed) {
    block = &b;
    for (unsigned i = 0; i < b.count; i++)
        b.fibers[i] = {prepare(stacks + i * STACK, fiber), i, State::Runs, 0};
    for (unsigned live = b.count; live > 0;) {
        bool progress = false;
        unsigned start = 0, step = 1;
        if (seed) {
            seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
            start = seed % b.count, step = seed & 0x10000 ? b.count - 1 : 1;
        }
        for (unsigned k = 0, i = start; k < b.count; k++, i = (i + step) % b.count) {
            if (b.fibers[i].state != State::Runs) continue;
            progress = true;
            b.current = &b.fibers[i];
            change(&b.scheduler, b.fibers[i].stack_pointer);
            if (b.fibers[i].state == State::Done) live--;
        }
        progress = release_warps(b) || progress;
        unsigned waiting = 0;
        for (unsigned i = 0; i < b.count; i++) waiting += b.fibers[i].state == State::AtBarrier;
        if (waiting > 0 && waiting == live) {
            for (unsigned i = 0; i < b.count; i++)
                if (b.fibers[i].state == State::AtBarrier) b.fibers[i].state = State::Runs;
            progress = true;
        }
        if (!progress && live > 0) return false;
    }
    return true;
}

// The stacks and shared memory of a host thread. Shared memory ends at a page that may not be touched.
struct Memory {
    static constexpr size_t SHARED = 256 << 10, GUARD = 64 << 10;
    char* stacks = nullptr;
    size_t count = 0;
    char* shared;

    Memory() {
        shared = (char*)mmap(nullptr, SHARED + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(shared + SHARED, GUARD, PROT_NONE);
    }
    ~Memory() {
        munmap(shared, SHARED + GUARD);
        if (stacks) munmap(stacks, count * STACK);
    }
    char* for_threads(size_t wanted) {
        if (wanted > count) {
            if (stacks) munmap(stacks, count * STACK);
            count = wanted;
            stacks = (char*)mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        }
        return stacks;
    }
};

// Says which thread of which kernel touched memory that is not its own, and ends the process.
static thread_local const char* kernel_name = nullptr;
static void on_fault(int, siginfo_t* info, void*) {
    char text[256];
    int length = snprintf(text, sizeof text, "test driver: a fault at %p outside kernels\n", info->si_addr);
    if (block && block->current)
        length = snprintf(text, sizeof text, "test driver: %s touches %p, outside its memory: block %u,%u,%u thread %u\n",
                          kernel_name, info->si_addr, block->index.x, block->index.y, block->index.z,
                          block->current->index);
    if (write(2, text, (size_t)length) < 0) _exit(1);
    _exit(139);
}
static void watch_faults() {
    static const bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &action, nullptr);
        sigaction(SIGBUS, &action, nullptr);
        return true;
    }();
    (void)once;
}

bool launch(const Kernel& kernel, uint3 grid, uint3 threads, unsigned shared_bytes, void** arguments, unsigned host_threads,
            uint32_t seed) {
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    std::vector<uint32_t> order(blocks);
    for (uint64_t i = 0; i < blocks; i++) order[i] = (uint32_t)i;
    uint32_t state = seed;
    for (uint64_t i = blocks; seed && i > 1; i--) {
        state = state * 1664525 + 1013904223;
        std::swap(order[i - 1], order[(state >> 8) % i]);
    }
    std::atomic<uint64_t> next{0};
    std::atomic<bool> stuck{false};
    watch_faults();
    auto work = [&] {
        static thread_local Memory memory;
        kernel_name = kernel.name;
        unsigned count = threads.x * threads.y * threads.z;
        std::vector<Fiber> fibers(count);
        std::vector<Warp> warps((count + 31) / 32);
        Block b{{}, threads, grid, count, fibers.data(), warps.data(), nullptr, nullptr, nullptr, kernel.run, arguments};
        b.shared = (unsigned char*)memory.shared + Memory::SHARED - (shared_bytes + 15) / 16 * 16;
        char* stacks = memory.for_threads(count);
        for (uint64_t i; !stuck && (i = next++) < blocks;) {
            uint32_t at = order[i];
            b.index = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
            memset(b.shared, 0xff, shared_bytes);  // not a number
            if (!run_block(b, stacks, seed ? (seed + at * 2654435761u) | 1 : 0)) stuck = true;
        }
        block = nullptr;
    };
    std::vector<std::thread> helpers;
    for (unsigned i = 1; i < std::min<uint64_t>(host_threads, blocks / 4 + 1); i++) helpers.emplace_back(work);
    work();
    for (auto& helper : helpers) helper.join();
    return !stuck;
}

}  // namespace shim
