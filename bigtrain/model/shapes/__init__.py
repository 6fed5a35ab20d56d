"""What a model consists of, computes and keeps, from its settings alone: without PyTorch, in milliseconds.

ModelSettings, AdapterSettings
  parameters.py      -> each parameter: name, shape, how often it multiplies a token, how ranks share it
  model_shapes.py    -> ModelShapes: parameters, blocks in the order in which they run, attention; counts and FLOPs

The models in `bigtrain.model` are built in PyTorch, independently of this. tests/model/test_shapes.py holds the two
equal for every family: names, order and shapes on the meta device.
"""
