// The kernels' own text, compiled as C++.
#define MILLGATE_TEST_DRIVER
#include "kernels.cu"
