"""The paper (Song et al. 2023, arXiv:2303.01469) as functions of tensors, in reading order, with its place there.

noise             the grid of noise levels, x + sigma z, draws of sigma      (section 5; EDM, arXiv:2206.00364)
preconditioning   a network becomes f with f(x, sigma_min) = x               (eq. 5, appendix C)
solvers           the probability-flow ODE, Euler, Heun                      (eq. 2; EDM, Algorithm 1)
distances         d(x, y)                                                    (section 4; improved CT: arXiv:2310.14189)
curricula         N(k) and mu(k)                                             (appendix C)
tangents          how an output changes along a path of noisy images         (forward mode)
objectives        base, denoising (the teacher's), consistency: CD and CT    (Algorithms 2 and 3)
                  scm: sCM's distillation and training                       (arXiv:2410.11081)
                  continuous: many noise levels' limit                       (appendix B)
                  mean_flow, lagrangian: two identities of a flow map        (arXiv:2505.13447, 2505.18825)
sampling          one step, several steps, the teacher's ODE                 (Algorithm 1)
exact             data whose denoiser is known: the truth to test against

No I/O, no processes, no configuration; randomness comes in as an argument.
"""
