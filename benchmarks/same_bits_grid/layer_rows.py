"""A training for every layer class of Keras, in the middle of a small model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from same_bits_grid.training import (
    CLASSES,
    SAMPLES,
    Attachment,
    Row,
    Trained,
    compiled,
    fitted,
    integers,
    numbers,
    with_and_without_xla,
)

VECTOR, TIMES, PIXELS, VOLUME = (24,), (8, 6), (8, 8, 3), (5, 5, 5, 2)
WORDS = 50


@dataclass(frozen=True)
class Case:
    """How one layer is put into a model."""

    make: Callable[[], Any]
    shape: tuple[int, ...] = VECTOR
    """Shape of one sample."""
    call: Callable[[Any, Any], Any] = lambda layer, x: layer(x)
    """Applies the layer to what the layer before it gives."""
    words: int = 0
    """The inputs are integers below it, and the layer reads them itself; 0: they are floats."""
    image: bool = False
    """The layer reads the inputs itself, pixels from 0 to 255, as augmentation does."""
    xla: bool = True
    """Whether XLA compiles it."""

    def model(self) -> Any:
        """The layer between two dense ones, or at the inputs."""
        inputs = keras.Input(self.shape, dtype="int32" if self.words else "float32")
        reads_inputs = self.words or self.image
        x = inputs if reads_inputs else layers.Dense(self.shape[-1], "tanh")(inputs)
        y = self.call(self.make(), x)
        if self.image:
            y = layers.Rescaling(1 / 255)(y)
        return keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(y)))

    def data(self) -> tuple[Any, Any]:
        """Samples of the shape, and targets."""
        shape = (SAMPLES, *self.shape)
        x = integers(self.words, *shape) if self.words else numbers(*shape)
        if self.image:
            x = abs(x * 80) % 255
        return x, numbers(SAMPLES, CLASSES, seed=1)


def on_pair(layer: Any, x: Any) -> Any:
    """Two inputs, as layers that merge and attend take them."""
    return layer([x, layers.Dense(x.shape[-1], "sigmoid")(x)])


def on_query_and_value(layer: Any, x: Any) -> Any:
    return layer(x, layers.Dense(x.shape[-1], "sigmoid")(x))


def there_and_back(layer: Any, x: Any) -> Any:
    """An embedding whose transpose gives the logits."""
    return layer(layer(x), reverse=True)


def augmentation(make: Callable[[], Any], *, xla: bool = True) -> Case:
    return Case(make, (12, 12, 3), image=True, xla=xla)


def over_times(make: Callable[[], Any], **more: Any) -> Case:
    return Case(make, TIMES, **more)


def over_pixels(make: Callable[[], Any], **more: Any) -> Case:
    return Case(make, PIXELS, **more)


def over_volume(make: Callable[[], Any], **more: Any) -> Case:
    return Case(make, VOLUME, **more)


def recurrent(cell: Callable[[], Any]) -> Case:
    return over_times(lambda: layers.RNN(cell()))


def both(units: int) -> dict[str, Any]:
    """Dropout of both kinds."""
    return {"units": units, "dropout": 0.2, "recurrent_dropout": 0.2}


def two_cells() -> list[Any]:
    return [layers.LSTMCell(**both(8)), layers.GRUCell(**both(8))]


WEIGHTED = {
    "BatchNormalization": over_pixels(lambda: layers.BatchNormalization()),
    "Bidirectional": over_times(lambda: layers.Bidirectional(layers.LSTM(8))),
    "Conv1D": over_times(lambda: layers.Conv1D(16, 3, padding="causal", dilation_rate=2)),
    "Conv1DTranspose": over_times(lambda: layers.Conv1DTranspose(16, 3, strides=2)),
    "Conv2D": over_pixels(lambda: layers.Conv2D(16, 3, padding="same", activation="relu")),
    "Conv2DTranspose": over_pixels(lambda: layers.Conv2DTranspose(16, 3, strides=2)),
    "Conv3D": over_volume(lambda: layers.Conv3D(8, 3, activation="relu")),
    "Conv3DTranspose": over_volume(lambda: layers.Conv3DTranspose(8, 2)),
    "ConvLSTM1D": Case(lambda: layers.ConvLSTM1D(8, 3, dropout=0.2), (4, 8, 2)),
    "ConvLSTM2D": Case(lambda: layers.ConvLSTM2D(8, 3, recurrent_dropout=0.2), (3, 6, 6, 2)),
    "ConvLSTM3D": Case(lambda: layers.ConvLSTM3D(4, 2, dropout=0.2), (3, 4, 4, 4, 2)),
    "Dense": Case(lambda: layers.Dense(32, "gelu")),
    "DepthwiseConv1D": over_times(lambda: layers.DepthwiseConv1D(3, depth_multiplier=2)),
    "DepthwiseConv2D": over_pixels(lambda: layers.DepthwiseConv2D(3)),
    "EinsumDense": over_times(lambda: layers.EinsumDense("abc,cd->abd", (8, 16))),
    "Embedding": Case(lambda: layers.Embedding(WORDS, 16), (9,), words=WORDS),
    "GRU": over_times(lambda: layers.GRU(12)),
    "GRUCell": recurrent(lambda: layers.GRUCell(**both(12))),
    "GroupNormalization": over_pixels(lambda: layers.GroupNormalization(3)),
    "GroupQueryAttention": over_times(
        lambda: layers.GroupQueryAttention(4, 4, 2, dropout=0.1),
        call=on_query_and_value,
    ),
    "LSTM": over_times(lambda: layers.LSTM(12)),
    "LSTMCell": recurrent(lambda: layers.LSTMCell(**both(12))),
    "LayerNormalization": over_times(lambda: layers.LayerNormalization()),
    "MultiHeadAttention": over_times(
        lambda: layers.MultiHeadAttention(2, 4, dropout=0.1),
        call=on_query_and_value,
    ),
    "Normalization": Case(lambda: layers.Normalization(mean=0.3, variance=2.0)),
    "PReLU": over_pixels(lambda: layers.PReLU(shared_axes=[1, 2])),
    "RMSNormalization": over_times(lambda: layers.RMSNormalization()),
    "RNN": recurrent(lambda: layers.SimpleRNNCell(12)),
    "ReversibleEmbedding": Case(
        lambda: layers.ReversibleEmbedding(WORDS, 8),
        (9,),
        call=there_and_back,
        words=WORDS,
    ),
    "SeparableConv1D": over_times(lambda: layers.SeparableConv1D(16, 3)),
    "SeparableConv2D": over_pixels(lambda: layers.SeparableConv2D(16, 3)),
    "SimpleRNN": over_times(lambda: layers.SimpleRNN(12)),
    "SimpleRNNCell": recurrent(lambda: layers.SimpleRNNCell(**both(12))),
    "SpectralNormalization": Case(lambda: layers.SpectralNormalization(layers.Dense(16))),
    "StackedRNNCells": recurrent(lambda: layers.StackedRNNCells(two_cells())),
    "TimeDistributed": over_times(lambda: layers.TimeDistributed(layers.Dense(8, "relu"))),
}

RANDOM = {
    "AlphaDropout": Case(lambda: layers.AlphaDropout(0.3)),
    "Dropout": Case(lambda: layers.Dropout(0.3)),
    "GaussianDropout": Case(lambda: layers.GaussianDropout(0.3)),
    "GaussianNoise": Case(lambda: layers.GaussianNoise(0.3)),
    "SpatialDropout1D": over_times(lambda: layers.SpatialDropout1D(0.3)),
    "SpatialDropout2D": over_pixels(lambda: layers.SpatialDropout2D(0.3)),
    "SpatialDropout3D": over_volume(lambda: layers.SpatialDropout3D(0.3)),
    "AugMix": augmentation(lambda: layers.AugMix()),
    "CutMix": augmentation(lambda: layers.CutMix(), xla=False),
    "MixUp": augmentation(lambda: layers.MixUp(), xla=False),
    "Pipeline": augmentation(
        lambda: layers.Pipeline([layers.RandomFlip(), layers.RandomContrast(0.4)]),
    ),
    "RandAugment": augmentation(lambda: layers.RandAugment()),
    "RandomBrightness": augmentation(lambda: layers.RandomBrightness(0.3)),
    "RandomColorDegeneration": augmentation(lambda: layers.RandomColorDegeneration(0.5)),
    "RandomColorJitter": augmentation(lambda: layers.RandomColorJitter(brightness_factor=0.3)),
    "RandomContrast": augmentation(lambda: layers.RandomContrast(0.3)),
    "RandomCrop": augmentation(lambda: layers.RandomCrop(8, 8)),
    "RandomElasticTransform": augmentation(
        lambda: layers.RandomElasticTransform(),
        xla=False,
    ),
    "RandomErasing": augmentation(lambda: layers.RandomErasing()),
    "RandomFlip": augmentation(lambda: layers.RandomFlip()),
    "RandomGaussianBlur": augmentation(lambda: layers.RandomGaussianBlur()),
    "RandomGrayscale": augmentation(lambda: layers.RandomGrayscale()),
    "RandomHue": augmentation(lambda: layers.RandomHue(0.3)),
    "RandomInvert": augmentation(lambda: layers.RandomInvert()),
    "RandomPerspective": augmentation(lambda: layers.RandomPerspective()),
    "RandomPosterization": augmentation(lambda: layers.RandomPosterization(4)),
    "RandomRotation": augmentation(lambda: layers.RandomRotation(0.2)),
    "RandomSaturation": augmentation(lambda: layers.RandomSaturation(0.4)),
    "RandomSharpness": augmentation(lambda: layers.RandomSharpness(0.4)),
    "RandomShear": augmentation(lambda: layers.RandomShear(0.2, 0.2)),
    "RandomTranslation": augmentation(lambda: layers.RandomTranslation(0.2, 0.2)),
    "RandomZoom": augmentation(lambda: layers.RandomZoom(0.2)),
}

PLAIN = {
    "Activation": Case(lambda: layers.Activation("swish")),
    "ActivityRegularization": Case(lambda: layers.ActivityRegularization(0.01, 0.01)),
    "AdaptiveAveragePooling1D": over_times(lambda: layers.AdaptiveAveragePooling1D(3)),
    "AdaptiveAveragePooling2D": over_pixels(lambda: layers.AdaptiveAveragePooling2D(3)),
    "AdaptiveAveragePooling3D": over_volume(lambda: layers.AdaptiveAveragePooling3D(2)),
    "AdaptiveMaxPooling1D": over_times(lambda: layers.AdaptiveMaxPooling1D(3)),
    "AdaptiveMaxPooling2D": over_pixels(lambda: layers.AdaptiveMaxPooling2D(3)),
    "AdaptiveMaxPooling3D": over_volume(lambda: layers.AdaptiveMaxPooling3D(2)),
    "Add": Case(lambda: layers.Add(), call=on_pair),
    "AdditiveAttention": over_times(lambda: layers.AdditiveAttention(), call=on_pair),
    "Attention": over_times(
        lambda: layers.Attention(use_scale=True, dropout=0.1),
        call=on_pair,
    ),
    "AutoContrast": augmentation(lambda: layers.AutoContrast()),
    "Average": Case(lambda: layers.Average(), call=on_pair),
    "AveragePooling1D": over_times(lambda: layers.AveragePooling1D(2)),
    "AveragePooling2D": over_pixels(lambda: layers.AveragePooling2D(3, 2, "same")),
    "AveragePooling3D": over_volume(lambda: layers.AveragePooling3D(2)),
    "CategoryEncoding": Case(
        lambda: layers.CategoryEncoding(WORDS, "count"),
        (9,),
        words=WORDS,
    ),
    "CenterCrop": augmentation(lambda: layers.CenterCrop(6, 6)),
    "Concatenate": Case(lambda: layers.Concatenate(), call=on_pair),
    "ContrastLimitedAdaptiveHistogramEqualization": augmentation(
        lambda: layers.ContrastLimitedAdaptiveHistogramEqualization(),
    ),
    "Cropping1D": over_times(lambda: layers.Cropping1D()),
    "Cropping2D": over_pixels(lambda: layers.Cropping2D()),
    "Cropping3D": over_volume(lambda: layers.Cropping3D()),
    "Discretization": Case(
        lambda: layers.Discretization([50.0, 100.0, 150.0], output_mode="one_hot"),
        (6,),
        image=True,
    ),
    "Dot": Case(lambda: layers.Dot(1, normalize=True), call=on_pair),
    "ELU": Case(lambda: layers.ELU()),
    "Equalization": augmentation(lambda: layers.Equalization()),
    "Flatten": over_pixels(lambda: layers.Flatten()),
    "GlobalAveragePooling1D": over_times(lambda: layers.GlobalAveragePooling1D()),
    "GlobalAveragePooling2D": over_pixels(lambda: layers.GlobalAveragePooling2D()),
    "GlobalAveragePooling3D": over_volume(lambda: layers.GlobalAveragePooling3D()),
    "GlobalMaxPooling1D": over_times(lambda: layers.GlobalMaxPooling1D()),
    "GlobalMaxPooling2D": over_pixels(lambda: layers.GlobalMaxPooling2D()),
    "GlobalMaxPooling3D": over_volume(lambda: layers.GlobalMaxPooling3D()),
    "Hashing": Case(
        lambda: layers.Hashing(WORDS, output_mode="multi_hot"),
        (9,),
        words=WORDS,
        xla=False,
    ),
    "Identity": Case(lambda: layers.Identity()),
    "IntegerLookup": Case(
        lambda: layers.IntegerLookup(vocabulary=list(range(1, 40)), output_mode="multi_hot"),
        (9,),
        words=WORDS,
        xla=False,
    ),
    "Lambda": Case(lambda: layers.Lambda(lambda x: keras.ops.logsumexp(x, -1, True))),
    "LeakyReLU": Case(lambda: layers.LeakyReLU()),
    "Masking": over_times(lambda: layers.Masking()),
    "MaxPooling1D": over_times(lambda: layers.MaxPooling1D()),
    "MaxPooling2D": over_pixels(lambda: layers.MaxPooling2D(3, 2, "same")),
    "MaxPooling3D": over_volume(lambda: layers.MaxPooling3D()),
    "Maximum": Case(lambda: layers.Maximum(), call=on_pair),
    "MelSpectrogram": Case(
        lambda: layers.MelSpectrogram(16, 8, num_mel_bins=8),
        (64,),
        image=True,
    ),
    "Minimum": Case(lambda: layers.Minimum(), call=on_pair),
    "Multiply": Case(lambda: layers.Multiply(), call=on_pair),
    "Permute": over_times(lambda: layers.Permute((2, 1))),
    "ReLU": Case(lambda: layers.ReLU(6.0, 0.1)),
    "RepeatVector": Case(lambda: layers.RepeatVector(3)),
    "Rescaling": Case(lambda: layers.Rescaling(0.3, 0.1)),
    "Reshape": Case(lambda: layers.Reshape((4, 6))),
    "Resizing": over_pixels(lambda: layers.Resizing(5, 5)),
    "Softmax": Case(lambda: layers.Softmax()),
    "Solarization": augmentation(lambda: layers.Solarization()),
    "Subtract": Case(lambda: layers.Subtract(), call=on_pair),
    "UnitNormalization": Case(lambda: layers.UnitNormalization()),
    "UpSampling1D": over_times(lambda: layers.UpSampling1D()),
    "UpSampling2D": over_pixels(lambda: layers.UpSampling2D(interpolation="bilinear")),
    "UpSampling3D": over_volume(lambda: layers.UpSampling3D()),
    "ZeroPadding1D": over_times(lambda: layers.ZeroPadding1D()),
    "ZeroPadding2D": over_pixels(lambda: layers.ZeroPadding2D()),
    "ZeroPadding3D": over_volume(lambda: layers.ZeroPadding3D()),
}

CASES = {**WEIGHTED, **RANDOM, **PLAIN}

LEFT_OUT = {
    "Layer": "the base class: it computes nothing",
    "Wrapper": "the base class of wrappers: it computes nothing",
    "InputLayer": "in every functional model of the grid",
    "FlaxLayer": "needs JAX and Flax",
    "JaxLayer": "needs JAX",
    "TorchModuleWrapper": "needs PyTorch",
    "TFSMLayer": "reads a SavedModel from disk",
    "MaxNumBoundingBoxes": "changes bounding boxes only, which no loss reads",
    "HashedCrossing": "takes pairs of features that data pipelines make, before the model",
    "STFTSpectrogram": "needs SciPy",
    "StringLookup": "takes strings, which data pipelines look up before the model",
    "TextVectorization": "takes strings, which data pipelines split before the model",
}
"""Layer classes that no row trains, and why."""


def layer_rows() -> Iterator[Row]:
    """Every class, in graph mode and by XLA, where this Keras has it."""
    for name, case in CASES.items():
        if hasattr(layers, name):
            yield from with_and_without_xla("layers", name, trains(case), xla=case.xla)


def trains(case: Case) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        return fitted(attach, compiled(optimizer, jit=jit, model=case.model()), *case.data())

    return train


def unlisted() -> list[str]:
    """Layer classes of this Keras that are neither in the table nor left out for a reason."""
    listed = {getattr(layers, name, None) for name in (*CASES, *LEFT_OUT)}
    classes = [each for each in vars(layers).values() if isinstance(each, type)]
    layer_classes = {each for each in classes if issubclass(each, keras.Layer)}
    return sorted(each.__name__ for each in layer_classes - listed)
