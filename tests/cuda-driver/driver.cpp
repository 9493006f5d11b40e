// A stand-in for NVIDIA's driver library, for tests: the entry points that the core uses, on host memory. Streams are threads,
// so that a missing synchronisation shows; kernels are the project's own, compiled as C++ (`kernels.cpp`).
//
// It is stricter than a GPU: every allocation ends at a page that may not be touched, fresh memory holds no numbers, work that
// a real driver would forbid while a graph is recorded is refused, and a module is loaded only if its PTX declares exactly
// the kernels and arguments that were compiled here.
//
// What it does is set by the environment (all MILLGATE_DRIVER_...):
//   SEED         permutes the order of threads and blocks; 0, the default, keeps it
//   THREADS      host threads for a launch; 1 by default
//   DEVICES      how many devices there are; 1 by default
//   NO_DEVICE    1: cuInit says that there is none
//   CAPABILITY   compute capability; 80 by default
//   VERSION      what cuDriverGetVersion says; 12080 by default
//   MEMORY_MB    a device's memory; 4096 by default
//   FAIL_LAUNCH  the n-th kernel that runs, replayed ones included, fails, and with it every call from then on
//   FAIL_ALLOC   the n-th allocation finds no memory
//   FAIL_CODE    the CUresult of a failed launch; 700 (illegal address) by default
#include <dlfcn.h>
#include <sys/mman.h>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include "fibers.h"

typedef int Result;
enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
};
#define ENTRY extern "C" __attribute__((visibility("default"))) Result

static long setting(const char* name, long otherwise) {
    const char* value = getenv((std::string("MILLGATE_DRIVER_") + name).c_str());
    return value ? atol(value) : otherwise;
}

static void complain(const std::string& what) { fprintf(stderr, "test driver: %s\n", what.c_str()); }

// The error that a failed kernel leaves: every later call gives it, as on a real device.
static std::atomic<Result> broken{SUCCESS};
#define NEEDS_WORKING_DEVICE \
    if (Result code = broken) return code

// ---- Streams and graphs ----

typedef std::function<void()> Work;
struct Graph {
    std::vector<Work> work;
};
struct Stream {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<Work> queue;
    bool busy = false, ends = false;
    std::unique_ptr<Graph> recording;
    std::thread thread{[this] { run(); }};

    void run() {
        std::unique_lock<std::mutex> held(lock);
        for (;;) {
            changed.wait(held, [&] { return ends || !queue.empty(); });
            if (queue.empty()) return;
            Work work = std::move(queue.front());
            queue.pop_front();
            busy = true;
            held.unlock();
            work();
            held.lock();
            busy = false;
            changed.notify_all();
        }
    }
    void push(Work work) {
        std::lock_guard<std::mutex> held(lock);
        if (recording) {
            recording->work.push_back(std::move(work));
        } else {
            queue.push_back(std::move(work));
            changed.notify_all();
        }
    }
    void wait() {
        std::unique_lock<std::mutex> held(lock);
        changed.wait(held, [&] { return queue.empty() && !busy; });
    }
    ~Stream() {
        wait();
        {
            std::lock_guard<std::mutex> held(lock);
            ends = true;
        }
        changed.notify_all();
        thread.join();
    }
};

// What is shared is never destroyed: threads may still use it when the process ends.
static std::mutex& streams_lock = *new std::mutex;
static std::map<Stream*, int>& streams = *new std::map<Stream*, int>;
static Stream& stream_of(void* handle) {
    static Stream* standard = new Stream;
    return (uintptr_t)handle <= 2 ? *standard : *(Stream*)handle;
}
static void wait_all() {
    stream_of(nullptr).wait();
    std::lock_guard<std::mutex> held(streams_lock);
    for (auto& entry : streams) entry.first->wait();
}
#define NOT_WHILE_RECORDING(handle)                                                     \
    if (stream_of(handle).recording) {                                                  \
        complain(std::string(__func__) + " while a graph is recorded");                 \
        return CAPTURE_UNSUPPORTED;                                                     \
    }

ENTRY cuStreamCreate(void** out, unsigned) {
    auto* stream = new Stream;
    std::lock_guard<std::mutex> held(streams_lock);
    streams[stream] = 1;
    *out = stream;
    return SUCCESS;
}
ENTRY cuStreamCreateWithPriority(void** out, unsigned flags, int) { return cuStreamCreate(out, flags); }
ENTRY cuStreamDestroy_v2(void* handle) {
    {
        std::lock_guard<std::mutex> held(streams_lock);
        if (!streams.erase((Stream*)handle)) return INVALID_VALUE;
    }
    delete (Stream*)handle;
    return SUCCESS;
}
ENTRY cuStreamSynchronize(void* handle) {
    NOT_WHILE_RECORDING(handle)
    stream_of(handle).wait();
    return broken;
}
ENTRY cuStreamIsCapturing(void* handle, int* out) {
    *out = stream_of(handle).recording ? 1 : 0;
    return SUCCESS;
}
ENTRY cuStreamBeginCapture_v2(void* handle, int) {
    NEEDS_WORKING_DEVICE;
    Stream& stream = stream_of(handle);
    std::lock_guard<std::mutex> held(stream.lock);
    if (stream.recording) return INVALID_VALUE;
    stream.recording.reset(new Graph);
    return SUCCESS;
}
ENTRY cuStreamEndCapture(void* handle, void** out) {
    Stream& stream = stream_of(handle);
    std::lock_guard<std::mutex> held(stream.lock);
    if (!stream.recording) return INVALID_VALUE;
    *out = stream.recording.release();
    return broken;
}
ENTRY cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) {
    NEEDS_WORKING_DEVICE;
    *out = new Graph(*(Graph*)graph);
    return SUCCESS;
}
ENTRY cuGraphLaunch(void* graph, void* handle) {
    NEEDS_WORKING_DEVICE;
    for (const Work& work : ((Graph*)graph)->work) stream_of(handle).push(work);
    return SUCCESS;
}
ENTRY cuGraphDestroy(void* graph) {
    delete (Graph*)graph;
    return SUCCESS;
}
ENTRY cuGraphExecDestroy(void* graph) {
    wait_all();
    delete (Graph*)graph;
    return SUCCESS;
}

// ---- Devices and contexts ----

static int context;
static thread_local void* current = nullptr;
static size_t total_memory() { return (size_t)setting("MEMORY_MB", 4096) << 20; }

ENTRY cuInit(unsigned) { return setting("NO_DEVICE", 0) ? NO_DEVICE : SUCCESS; }
ENTRY cuDriverGetVersion(int* out) {
    *out = (int)setting("VERSION", 12080);
    return SUCCESS;
}
ENTRY cuDeviceGetCount(int* out) {
    *out = (int)setting("DEVICES", 1);
    return SUCCESS;
}
ENTRY cuDeviceGet(int* out, int ordinal) {
    if (ordinal < 0 || ordinal >= setting("DEVICES", 1)) return INVALID_DEVICE;
    *out = ordinal;
    return SUCCESS;
}
ENTRY cuDeviceGetName(char* out, int size, int) {
    snprintf(out, (size_t)size, "Test driver");
    return SUCCESS;
}
ENTRY cuDeviceTotalMem_v2(size_t* out, int) {
    *out = total_memory();
    return SUCCESS;
}
ENTRY cuDeviceGetAttribute(int* out, int attribute, int) {
    int capability = (int)setting("CAPABILITY", 80);
    switch (attribute) {
        case 75: *out = capability / 10; break;
        case 76: *out = capability % 10; break;
        case 16: *out = 4; break;    // multiprocessors
        case 115: *out = 1; break;   // memory pools
        default: *out = 0;
    }
    return SUCCESS;
}
ENTRY cuDevicePrimaryCtxRetain(void** out, int) {
    NEEDS_WORKING_DEVICE;
    *out = &context;
    return SUCCESS;
}
ENTRY cuDevicePrimaryCtxRelease_v2(int) {
    wait_all();
    return SUCCESS;
}
ENTRY cuCtxGetCurrent(void** out) {
    *out = current;
    return SUCCESS;
}
ENTRY cuCtxSetCurrent(void* handle) {
    current = handle;
    return SUCCESS;
}
ENTRY cuCtxSynchronize() {
    wait_all();
    return broken;
}

// ---- Memory ----

struct Allocation {
    char* base;
    size_t mapped, bytes;
};
static std::mutex& memory_lock = *new std::mutex;
static std::map<uint64_t, Allocation>& allocations = *new std::map<uint64_t, Allocation>;
static size_t used = 0;
static long allocated = 0;

static Result allocate(uint64_t* out, size_t bytes) {
    NEEDS_WORKING_DEVICE;
    std::lock_guard<std::mutex> held(memory_lock);
    if (++allocated == setting("FAIL_ALLOC", 0) || used + bytes > total_memory()) return OUT_OF_MEMORY;
    const size_t page = 4096;
    size_t whole = std::max((bytes + page - 1) / page * page, page);
    char* base = (char*)mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(base + whole, page, PROT_NONE);
    char* start = base + whole - (bytes + 15) / 16 * 16;
    memset(start, 0xff, bytes);
    used += bytes;
    *out = (uint64_t)start;
    allocations[*out] = {base, whole + page, bytes};
    return SUCCESS;
}
static Result release(uint64_t pointer) {
    std::lock_guard<std::mutex> held(memory_lock);
    auto found = allocations.find(pointer);
    if (found == allocations.end()) return INVALID_VALUE;
    used -= found->second.bytes;
    munmap(found->second.base, found->second.mapped);
    allocations.erase(found);
    return SUCCESS;
}
// Whether a range lies in one allocation.
static bool inside(uint64_t pointer, size_t bytes) {
    std::lock_guard<std::mutex> held(memory_lock);
    auto next = allocations.upper_bound(pointer);
    if (next == allocations.begin()) return false;
    auto found = std::prev(next);
    bool holds = pointer + bytes <= found->first + found->second.bytes;
    if (!holds) complain("a copy beyond its allocation");
    return holds;
}

ENTRY cuMemAlloc_v2(uint64_t* out, size_t bytes) { return bytes ? allocate(out, bytes) : INVALID_VALUE; }
ENTRY cuMemAllocAsync(uint64_t* out, size_t bytes, void* handle) {
    NOT_WHILE_RECORDING(handle)
    return bytes ? allocate(out, bytes) : INVALID_VALUE;
}
ENTRY cuMemFree_v2(uint64_t pointer) {
    wait_all();
    return release(pointer);
}
ENTRY cuMemFreeAsync(uint64_t pointer, void* handle) {
    NOT_WHILE_RECORDING(handle)
    stream_of(handle).push([=] { release(pointer); });
    return SUCCESS;
}
ENTRY cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    NEEDS_WORKING_DEVICE;
    wait_all();
    std::lock_guard<std::mutex> held(memory_lock);
    *total = total_memory();
    *free_bytes = *total - used;
    return SUCCESS;
}
// Pageable host memory is read before the call returns, as the real driver does.
ENTRY cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* handle) {
    NEEDS_WORKING_DEVICE;
    NOT_WHILE_RECORDING(handle)
    if (!inside(to, bytes)) return INVALID_VALUE;
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    stream_of(handle).push([=] { memcpy((void*)to, staged->data(), bytes); });
    return SUCCESS;
}
ENTRY cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    NEEDS_WORKING_DEVICE;
    NOT_WHILE_RECORDING(handle)
    if (!inside(from, bytes)) return INVALID_VALUE;
    stream_of(handle).push([=] { memcpy(to, (const void*)from, bytes); });
    stream_of(handle).wait();
    return broken;
}
ENTRY cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* handle) {
    NEEDS_WORKING_DEVICE;
    NOT_WHILE_RECORDING(handle)
    if (!inside(to, bytes)) return INVALID_VALUE;
    stream_of(handle).push([=] { memset((void*)to, value, bytes); });
    return SUCCESS;
}

// ---- Modules and launches ----

struct Module {
    std::map<std::string, const shim::Kernel*> functions;
};

// Bytes of an argument as PTX declares it: `.param .u64 name`, or `.param .align 8 .b8 name[32]`.
static unsigned parameter_bytes(const std::string& line) {
    size_t bracket = line.find('[');
    if (bracket != std::string::npos) return (unsigned)atoi(line.c_str() + bracket + 1);
    if (line.find(".u64") != std::string::npos || line.find(".s64") != std::string::npos) return 8;
    if (line.find(".u32") != std::string::npos || line.find(".s32") != std::string::npos ||
        line.find(".f32") != std::string::npos)
        return 4;
    return 0;
}

// Finds what a module's PTX declares, and holds it against what was compiled here.
static bool read_ptx(const std::string& text, Module& module) {
    const std::string entry = ".visible .entry ";
    for (size_t at = text.find(entry); at != std::string::npos; at = text.find(entry, at + 1)) {
        size_t open = text.find('(', at), close = text.find(')', open);
        if (close == std::string::npos) return false;
        std::string name = text.substr(at + entry.size(), open - at - entry.size());
        std::vector<unsigned> sizes;
        for (size_t p = text.find(".param", open); p < close; p = text.find(".param", p + 1))
            sizes.push_back(parameter_bytes(text.substr(p, text.find('\n', p) - p)));
        const shim::Kernel* found = nullptr;
        for (const auto& kernel : shim::kernels())
            if (kernel.name == name) found = &kernel;
        if (!found || found->sizes != sizes) {
            complain("the PTX's kernel " + name + " is not the one that was compiled");
            return false;
        }
        module.functions[name] = found;
    }
    return module.functions.size() == shim::kernels().size();
}

ENTRY cuModuleLoadData(void** out, const void* image) {
    NEEDS_WORKING_DEVICE;
    auto module = std::make_unique<Module>();
    if (!read_ptx((const char*)image, *module)) return INVALID_IMAGE;
    *out = module.release();
    return SUCCESS;
}
ENTRY cuModuleUnload(void* module) {
    wait_all();
    delete (Module*)module;
    return SUCCESS;
}
ENTRY cuModuleGetFunction(void** out, void* module, const char* name) {
    auto found = ((Module*)module)->functions.find(name);
    if (found == ((Module*)module)->functions.end()) return NOT_FOUND;
    *out = (void*)found->second;
    return SUCCESS;
}
ENTRY cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, void* handle, void** arguments, void**) {
    NEEDS_WORKING_DEVICE;
    static std::atomic<long> launches{0};
    auto* kernel = (const shim::Kernel*)function;
    if (!current) return INVALID_CONTEXT;
    if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > kernel->threads || gy > 65535 || gz > 65535 ||
        shared > 48 << 10) {
        complain(std::string("a launch of ") + kernel->name + " that a device refuses");
        return INVALID_VALUE;
    }
    std::vector<std::vector<char>> kept;
    for (size_t i = 0; i < kernel->sizes.size(); i++)
        kept.emplace_back((char*)arguments[i], (char*)arguments[i] + kernel->sizes[i]);
    unsigned host_threads = (unsigned)setting("THREADS", 1);
    auto seed = (uint32_t)setting("SEED", 0);
    stream_of(handle).push([=]() mutable {
        if (broken) return;
        if (++launches == setting("FAIL_LAUNCH", 0)) {
            broken = (Result)setting("FAIL_CODE", ILLEGAL_ADDRESS);
            return;
        }
        std::vector<void*> pointers;
        for (auto& argument : kept) pointers.push_back(argument.data());
        if (shim::launch(*kernel, {gx, gy, gz}, {bx, by, bz}, shared, pointers.data(), host_threads, seed)) return;
        complain(std::string(kernel->name) + ": threads of a block wait at different barriers");
        broken = LAUNCH_FAILED;
    });
    return SUCCESS;
}

// ---- Errors ----

static const char* name_of(Result code) {
    switch (code) {
        case SUCCESS: return "CUDA_SUCCESS";
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
        case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
        case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
        case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
        default: return "CUDA_ERROR_UNKNOWN";
    }
}
ENTRY cuGetErrorName(Result code, const char** out) {
    *out = name_of(code);
    return SUCCESS;
}
ENTRY cuGetErrorString(Result code, const char** out) {
    *out = name_of(code);
    return SUCCESS;
}
