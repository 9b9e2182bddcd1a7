"""The private names of TensorFlow and Keras that this package relies on. No other module imports one.

A test names what an upgrade moved. Each function says why no public name does.
"""
