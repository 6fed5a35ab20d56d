"""What a model consists of, computes and keeps, from its settings alone: without PyTorch, in milliseconds.

ModelSettings, AdapterSettings
  parameters           -> each parameter: name, shape, how often it multiplies a token, how ranks share it
  model_shapes         -> ModelShapes: parameters, blocks in the order in which they run, attention; counts and FLOPs
    computation        precision, device and kernels: what decides what is kept
    activations        -> ModelActivations: the tensors that wait for the backward pass, by mode of recomputation
      tape             a forward pass that records them, operator by operator, as autograd's formulas say
      kept_of_block, kept_of_ends, kept_of_recurrence      the modules of the models, on a tape
      loss_memory      what the loss needs while it is computed
      kept_products    what selective recomputation keeps under a budget

The models in `bigtrain.model` are built in PyTorch, independently of this. Tests hold the two equal for every family:
names, order and shapes on the meta device (tests/model/test_shapes.py), and the bytes that a forward pass leaves alive
(tests/model/test_kept_activations.py).
"""
