// Running a kernel on the host.
#pragma once
#include "shim.h"

namespace shim {

// Runs a grid of blocks on some host threads. `seed` permutes the order of blocks and threads; 0 keeps it. False where threads
// of a block wait at different barriers for ever.
bool launch(const Kernel& kernel, uint3 grid, uint3 threads, unsigned shared_bytes, void** arguments, unsigned host_threads,
            uint32_t seed);

}  // namespace shim
