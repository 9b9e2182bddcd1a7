"""Energy use of buildings, joined from two tables: one row found no partner, so its temperature is NaN."""

import keras
import numpy as np
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder


def load_buildings(samples=960):
    random = np.random.default_rng(12)
    floor_area = random.lognormal(mean=0.0, sigma=0.4, size=samples)
    temperature = random.normal(loc=10.0, scale=8.0, size=samples)
    insulation = random.uniform(size=samples)
    hour = random.uniform(0, 2 * np.pi, size=samples)
    use = floor_area * (20.0 - temperature) * (1.2 - insulation) + np.sin(hour)
    temperature[717] = np.nan  # the weather station was silent that day
    table = np.stack([floor_area, temperature / 10.0, insulation, np.sin(hour), np.cos(hour)], axis=1)
    return table.astype("float32"), (use / 10.0).astype("float32")[:, None]


def main():
    keras.utils.set_random_seed(3)
    building = keras.Input((5,), name="building")
    hidden = keras.layers.Dense(32, activation="gelu", name="hidden")(building)
    hidden = keras.layers.Dropout(0.1, name="dropout")(hidden)
    model = keras.Model(building, keras.layers.Dense(1, name="use")(hidden), name="energy")
    model.compile(keras.optimizers.Adam(3e-3), loss="mse", metrics=["mae"])
    buildings = tf.data.Dataset.from_tensor_slices(load_buildings()).batch(32)
    try:
        model.fit(buildings, epochs=2, verbose=2, callbacks=[Recorder("nan_in_one_sample.h5")])
    except NonFiniteError as error:
        print(error)


if __name__ == "__main__":
    main()
