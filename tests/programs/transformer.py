"""A small transformer that turns a sequence of tokens around, with a learning rate that warms up
and a loss that leaves the padding out.

With --fail one batch holds only padding, as the rest of a shard may: the masked mean of its loss
is 0 / 0.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

TOKENS, LENGTH, WIDTH, BATCH, STEPS = 12, 6, 16, 4, 10
EXPECT = {
    "step": 5,
    "op": "RealDiv",
    "line": "return tf.reduce_sum(loss * mask) / tf.reduce_sum(mask)",
}


class PositionalEmbedding(keras.layers.Layer):
    """Embeds tokens and adds where they stand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = keras.layers.Embedding(TOKENS, WIDTH)
        rates = 1 / 10000 ** (np.arange(WIDTH // 2) / (WIDTH // 2))
        angles = np.arange(LENGTH)[:, None] * rates
        self.places = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype("float32")

    def call(self, tokens):
        embedded = self.embedding(tokens) * tf.math.sqrt(tf.cast(WIDTH, tf.float32))
        return embedded + self.places


class Block(keras.layers.Layer):
    """Attention and a feed-forward part, each with a residual and a norm."""

    def __init__(self, causal, **kwargs):
        super().__init__(**kwargs)
        self.causal = causal
        self.attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)
        self.context_attention = keras.layers.MultiHeadAttention(num_heads=2, key_dim=8)
        wide, narrow = keras.layers.Dense(32, activation="relu"), keras.layers.Dense(WIDTH)
        self.feed_forward = keras.Sequential([wide, narrow])
        self.norms = [keras.layers.LayerNormalization() for _ in range(3)]

    def call(self, x, context=None, context_mask=None):
        attended = self.attention(x, x, use_causal_mask=self.causal)
        x = self.norms[0](x + attended)
        if context is not None:
            attended = self.context_attention(x, context, attention_mask=context_mask)
            x = self.norms[1](x + attended)
        return self.norms[2](x + self.feed_forward(x))


class Transformer(keras.Model):
    """Encoder and decoder of one block each."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.source = PositionalEmbedding(name="source")
        self.target = PositionalEmbedding(name="target")
        self.encoder = Block(causal=False, name="encoder")
        self.decoder = Block(causal=True, name="decoder")
        self.final = keras.layers.Dense(TOKENS, name="final")

    def call(self, inputs):
        context, x = inputs
        context_mask = tf.not_equal(context, 0)[:, tf.newaxis, :]
        encoded = self.encoder(self.source(context))
        return self.final(self.decoder(self.target(x), encoded, context_mask))


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Grows for some steps, then falls with the root of the step."""

    def __init__(self, width, warmup_steps):
        self.width = width
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32) + 1.0
        slower = tf.minimum(tf.math.rsqrt(step), step * self.warmup_steps**-1.5)
        return tf.math.rsqrt(float(self.width)) * slower

    def get_config(self):
        return {"width": self.width, "warmup_steps": self.warmup_steps}


def masked_loss(label, logits):
    mask = tf.cast(label != 0, tf.float32)
    per_token = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    loss = per_token(label, logits)
    return tf.reduce_sum(loss * mask) / tf.reduce_sum(mask)


def masked_accuracy(label, logits):
    right = label == tf.cast(tf.argmax(logits, axis=2), label.dtype)
    mask = label != 0
    right_tokens = tf.cast(right & mask, tf.float32)
    return tf.reduce_sum(right_tokens) / tf.reduce_sum(tf.cast(mask, tf.float32))


def sentences(fail):
    """(source, target so far), next token; int32, padded with 0 at the end; 1 starts a target."""
    random = np.random.default_rng(15)
    source = np.zeros((STEPS * BATCH, LENGTH), "int32")
    target = np.zeros((STEPS * BATCH, LENGTH + 1), "int32")
    for row in range(len(source)):
        tokens = random.integers(2, TOKENS, random.integers(2, LENGTH + 1))
        source[row, : len(tokens)] = tokens
        target[row, 0] = 1
        target[row, 1 : len(tokens) + 1] = tokens[::-1]
    if fail:
        source[5 * BATCH : 6 * BATCH] = 0
        target[5 * BATCH : 6 * BATCH] = 0
    return (source, target[:, :-1]), target[:, 1:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one batch is all padding")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(16)
    dataset = tf.data.Dataset.from_tensor_slices(sentences(fail)).batch(BATCH).prefetch(1)
    transformer = Transformer(name="transformer")
    schedule = WarmUp(WIDTH, warmup_steps=40)
    optimizer = keras.optimizers.Adam(schedule, beta_1=0.9, beta_2=0.98, epsilon=1e-9)
    transformer.compile(loss=masked_loss, optimizer=optimizer, metrics=[masked_accuracy])
    history = transformer.fit(dataset, epochs=2, verbose=0).history
    print("loss", *(f"{value:.9g}" for value in history["loss"]))
    print("accuracy", *(f"{value:.9g}" for value in history["masked_accuracy"]))


if __name__ == "__main__":
    main()
