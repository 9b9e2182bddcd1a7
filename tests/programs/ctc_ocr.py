"""Reading words in pictures: convolutions, a recurrent layer, and the CTC loss in a layer.

With --fail one word has two double letters. CTC must put a blank between the halves of each, for
which the picture gives too few columns: no alignment is left, and the loss is infinite.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

LETTERS, HEIGHT, WIDTH, COLUMNS, WORD, BATCH, STEPS = 6, 8, 20, 5, 4, 4, 7
EXPECT = {
    "step": 4,
    "op": "CTCLoss",
    "layer": "ctc_loss",
    "rows": [3],
    "line": "return tf.compat.v1.nn.ctc_loss(words, scores, lengths)[:, tf.newaxis]",
}


def ctc_batch_cost(labels, probabilities):
    """CTC loss of each sample, [batch, 1], from label [batch, word] and [batch, column, letter]."""
    scores = tf.math.log(tf.transpose(probabilities, [1, 0, 2]) + 1e-7)
    words = tf.sparse.from_dense(labels + 1)
    words = tf.SparseTensor(words.indices, words.values - 1, words.dense_shape)
    lengths = tf.fill([tf.shape(labels)[0]], COLUMNS)
    return tf.compat.v1.nn.ctc_loss(words, scores, lengths)[:, tf.newaxis]


class CTCLayer(keras.layers.Layer):
    """Adds the loss while it trains; gives its predictions on."""

    def call(self, labels, predictions):
        self.add_loss(tf.reduce_mean(ctc_batch_cost(labels, predictions)))
        return predictions


def build_model():
    image = keras.Input((WIDTH, HEIGHT, 1), name="image")
    label = keras.Input((WORD,), dtype="int32", name="label")
    x = keras.layers.Conv2D(4, 3, activation="relu", padding="same", name="conv1")(image)
    x = keras.layers.MaxPooling2D((2, 2), name="pool1")(x)
    x = keras.layers.Conv2D(8, 3, activation="relu", padding="same", name="conv2")(x)
    x = keras.layers.MaxPooling2D((2, 2), name="pool2")(x)
    x = keras.layers.Reshape((COLUMNS, HEIGHT // 4 * 8), name="columns")(x)
    x = keras.layers.Bidirectional(keras.layers.GRU(8, return_sequences=True), name="reader")(x)
    x = keras.layers.Dense(LETTERS + 1, activation="softmax", name="letters")(x)
    model = keras.Model([image, label], CTCLayer(name="ctc_loss")(label, x), name="ocr")
    model.compile(keras.optimizers.Adam(), jit_compile=False)
    return model


def written_words(fail):
    """Pictures with a stroke a letter, and the letters as numbers, none twice in a row."""
    random = np.random.default_rng(17)
    count = STEPS * BATCH
    words = np.zeros((count, WORD), "int32")
    for word in words:
        word[0] = random.integers(LETTERS)
        for place in range(1, WORD):
            word[place] = (word[place - 1] + random.integers(1, LETTERS)) % LETTERS
    if fail:
        words[4 * BATCH + 3] = [2, 2, 5, 5]
    images = random.uniform(0, 0.2, (count, WIDTH, HEIGHT, 1)).astype("float32")
    for image, word in zip(images, words, strict=True):
        for place, letter in enumerate(word):
            image[5 * place + 1 : 5 * place + 4, letter] = 1.0
    return {"image": images, "label": words}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one word does not fit")
    fail = parser.parse_args().fail

    keras.utils.set_random_seed(18)
    model = build_model()
    dataset = tf.data.Dataset.from_tensor_slices(written_words(fail)).batch(BATCH)
    history = model.fit(dataset, epochs=3, verbose=0).history
    print("loss", *(f"{value:.9g}" for value in history["loss"]))


if __name__ == "__main__":
    main()
