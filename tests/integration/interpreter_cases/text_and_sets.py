"""Strings, sets, hashing, encoding."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from . import case
from .build import normal

Built = tuple[Any, tuple[Any, ...]]


@case
def strings() -> Built:
    def step(text: Any) -> Any:
        words = tf.strings.split(text)
        return (
            words.flat_values,
            tf.strings.length(text),
            tf.strings.upper(text),
            tf.strings.join([text, text], "-"),
            tf.strings.regex_replace(text, "a", "b"),
            tf.strings.substr(text, 0, 2),
            tf.strings.to_hash_bucket_fast(words.flat_values, 100),
            tf.strings.to_hash_bucket_strong(text, 100, [1, 2]),
            tf.strings.reduce_join(text),
            tf.strings.unicode_decode(text, "UTF-8").flat_values,
            tf.strings.ngrams(words, 2).flat_values,
        )

    return step, (tf.constant(["a bad cat", "an  été"]),)


@case
def numbers_as_text() -> Built:
    def step(x: Any) -> Any:
        text = tf.strings.as_string(x)
        return tf.strings.to_number(text), tf.strings.format("{}", x), tf.io.encode_base64(text)

    return step, (normal(3),)


@case
def serialized_tensors() -> Built:
    def step(x: Any) -> Any:
        return tf.io.parse_tensor(tf.io.serialize_tensor(x), tf.float32), tf.io.decode_raw(
            ["abcd"], tf.uint8
        )

    return step, (normal(3),)


@case
def sets() -> Built:
    def step(a: Any, b: Any) -> Any:
        return (
            tf.sets.intersection(a, b).values,
            tf.sets.size(tf.sets.union(a, b)),
            tf.sparse.cross([a, b]).values,
        )

    return step, (tf.constant([[1, 2, 3]]), tf.constant([[2, 3, 4]]))


@case
def edit_distance() -> Built:
    def step(a: Any, b: Any) -> Any:
        return tf.edit_distance(tf.sparse.from_dense(a), tf.sparse.from_dense(b))

    return step, (tf.constant([[1, 2, 3]]), tf.constant([[2, 3, 4]]))
