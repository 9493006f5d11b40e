// All kernels, as one unit of compilation. `kernels.ptx` is compiled from it by `tests/gpu/compile.py`.
#include "rows.cu"
#include "matmul.cu"
#include "attention.cu"
