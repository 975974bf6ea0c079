"""The mathematics of adapters: `y = W x + s · B (A x)`, its relatives, and their files. Knows torch, nothing of the studio.

W is frozen (dense, NF4, FP4 or int8); A is (r, d_in), B is (d_out, r), s = alpha / r, or alpha / √r for rsLoRA
(Hu et al. 2021, arXiv 2106.09685; Dettmers et al. 2023, arXiv 2305.14314).
"""
