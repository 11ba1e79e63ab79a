// A stand-in for the CUDA header of the same name, used where that is not installed: libtorch names these types in passing,
// and nothing of ours uses them.
#pragma once

typedef struct cublasContext* cublasHandle_t;
typedef int cublasStatus_t;
