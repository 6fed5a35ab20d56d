"""What makes training and generation on CPUs fast.

cpu_kernels.cpp   attention, the softmax of the loss, dropout and transposing, in AVX-512 and bfloat16
cpu_kernels.py    compiles them at first use, and loads them
cpu_products.py   matrix products of 16-bit floats: multiplied in float32 or transposed where that is faster
"""
