"""Fewer or coarser numbers in the matrices of a model.

pruning          which weights stay: by magnitude, by Wanda's score, n of m
quantisation     small integers with a scale for each group of columns; fake quantisation for training
gptq             the same integers, rounded so that errors cancel on given inputs
linears          the layers in question
compressed       linear layers that compute with such weights while they train
"""
