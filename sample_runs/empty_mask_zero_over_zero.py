"""A tagger of sentences whose loss is the mean over the real tokens: one sentence is empty, so its mean is 0 / 0."""

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder

WORDS, TAGS, LENGTH = 60, 5, 10


def masked_cross_entropy(tags, logits):
    mask = tf.cast(tags > 0, tf.float32)  # tag 0 pads a sentence to its length
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(tags, tf.int32), logits)
    return tf.reduce_sum(losses * mask, axis=-1) / tf.reduce_sum(mask, axis=-1)


def load_sentences(samples=768):
    random = np.random.default_rng(13)
    words = random.integers(1, WORDS, size=(samples, LENGTH))
    lengths = random.integers(2, LENGTH + 1, size=samples)
    lengths[421] = 0  # a line that held only a comment
    words[np.arange(LENGTH) >= lengths[:, None]] = 0
    tags = np.where(words > 0, words % (TAGS - 1) + 1, 0)
    return words.astype("int32"), tags.astype("int32")


def main():
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32", name="words"),
            keras.layers.Embedding(WORDS, 12, name="embedding"),
            keras.layers.Conv1D(16, 3, padding="same", activation="tanh", name="context"),
            keras.layers.Dense(TAGS, name="tag"),
        ],
        name="tagger",
    )
    model.compile(keras.optimizers.Adam(1e-2), loss=masked_cross_entropy)
    words, tags = load_sentences()
    try:
        model.fit(words, tags, batch_size=32, epochs=2, shuffle=False, verbose=2, callbacks=[Recorder("empty_mask_zero_over_zero.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
