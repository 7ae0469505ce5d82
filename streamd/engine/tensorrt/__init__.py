"""TensorRT on NVIDIA GPUs: from a decoder's surface to boxes without leaving the device.

`cuda` is the only file that knows pycuda, `runtime` the only one that runs TensorRT; `kernels` and `decode` fill the
structures of kernels.cu; `slot` is one batch in flight and `replay` its CUDA graphs; `backend` puts them together;
`version` and `builder` make plans.
"""
