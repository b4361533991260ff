"""Facts about CUDA, torch and the kernel that GPU pools rest on, tried one by one on a machine with a GPU."""
