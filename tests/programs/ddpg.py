"""Deep deterministic policy gradient: a replay buffer in numpy, whose learn() calls a compiled
update; target networks follow slowly.

With --fail one episode begins at rest. The critic looks at the direction of the velocity, which
is 0 / 0 there; the loss turns NaN in the first update that draws this moment from the buffer.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf

STATE, ACTION, BATCH = 4, 2, 8
GAMMA, TAU = 0.95, 0.01
EPISODES, MOVES = 5, 8
AT_REST = 2  # the episode that begins so with --fail
EXPECT = {
    "step": 19,
    "op": "RealDiv",
    "layer": "heading",
    "rows": [7],
    "line": "return velocity / tf.norm(velocity, axis=-1, keepdims=True)",
}


class Plane:
    """A point that is pushed over a plane: two places and two velocities; it should go to 0, 0."""

    def __init__(self, fail):
        self.random = np.random.default_rng(11)
        self.fail = fail

    def reset(self, episode):
        self.state = self.random.normal(size=STATE).astype("float32")
        if self.fail and episode == AT_REST:
            self.state[2:] = 0.0
        return self.state

    def step(self, action):
        place, velocity = self.state[:2], self.state[2:]
        velocity = 0.9 * velocity + 0.3 * np.clip(action, -1, 1)
        self.state = np.concatenate([place + 0.1 * velocity, velocity]).astype("float32")
        return self.state, -float(np.sum(np.square(place)))


class Heading(keras.layers.Layer):
    """Direction of a velocity, as a vector of length 1."""

    def call(self, velocity):
        return velocity / tf.norm(velocity, axis=-1, keepdims=True)


def get_actor():
    inputs = keras.Input((STATE,))
    hidden = keras.layers.Dense(16, activation="relu", name="actor_hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(ACTION, activation="tanh", name="push")(hidden))


def get_critic():
    state, action = keras.Input((STATE,)), keras.Input((ACTION,))
    heading = Heading(name="heading")(state[:, 2:])
    joined = keras.layers.Concatenate(name="joined")([state, heading, action])
    hidden = keras.layers.Dense(16, activation="relu", name="critic_hidden")(joined)
    return keras.Model([state, action], keras.layers.Dense(1, name="value")(hidden))


keras.utils.set_random_seed(13)
actor_model, critic_model = get_actor(), get_critic()
target_actor, target_critic = get_actor(), get_critic()
target_actor.set_weights(actor_model.get_weights())
target_critic.set_weights(critic_model.get_weights())
critic_optimizer = keras.optimizers.Adam(0.002)
actor_optimizer = keras.optimizers.Adam(0.001)


class Buffer:
    """The last moments of all episodes, and what is learnt from a draw of them."""

    def __init__(self, capacity=30):
        self.capacity = capacity
        self.counter = 0
        self.draws = np.random.RandomState(24)
        self.states = np.zeros((capacity, STATE), "float32")
        self.actions = np.zeros((capacity, ACTION), "float32")
        self.rewards = np.zeros((capacity, 1), "float32")
        self.next_states = np.zeros((capacity, STATE), "float32")

    def record(self, state, action, reward, next_state):
        place = self.counter % self.capacity
        self.states[place], self.actions[place] = state, action
        self.rewards[place], self.next_states[place] = reward, next_state
        self.counter += 1

    @tf.function
    def update(self, states, actions, rewards, next_states):
        with tf.GradientTape() as tape:
            target_actions = target_actor(next_states, training=True)
            future = target_critic([next_states, target_actions], training=True)
            values = critic_model([states, actions], training=True)
            critic_loss = tf.reduce_mean(tf.square(rewards + GAMMA * future - values))
        gradients = tape.gradient(critic_loss, critic_model.trainable_variables)
        critic_optimizer.apply(gradients, critic_model.trainable_variables)

        with tf.GradientTape() as tape:
            values = critic_model([states, actor_model(states, training=True)], training=True)
            actor_loss = -tf.reduce_mean(values)
        gradients = tape.gradient(actor_loss, actor_model.trainable_variables)
        actor_optimizer.apply(gradients, actor_model.trainable_variables)

    def learn(self):
        drawn = self.draws.choice(min(self.counter, self.capacity), BATCH)
        self.update(
            tf.convert_to_tensor(self.states[drawn]),
            tf.convert_to_tensor(self.actions[drawn]),
            tf.convert_to_tensor(self.rewards[drawn]),
            tf.convert_to_tensor(self.next_states[drawn]),
        )


def update_target(target, original, tau):
    pairs = zip(target.get_weights(), original.get_weights(), strict=True)
    mixed = [weight * tau + slow * (1 - tau) for slow, weight in pairs]
    target.set_weights(mixed)


def policy(state, noise):
    action = tf.squeeze(actor_model(state[None]))
    return np.clip(action.numpy() + noise, -1, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail", action="store_true", help="one episode begins at rest")
    plane = Plane(parser.parse_args().fail)

    buffer = Buffer()
    exploration = np.random.default_rng(14)

    for episode in range(EPISODES):
        state, total = plane.reset(episode), 0.0
        for _ in range(MOVES):
            action = policy(state, 0.2 * exploration.normal(size=ACTION))
            next_state, reward = plane.step(action)
            buffer.record(state, action, reward, next_state)
            total += reward
            buffer.learn()
            update_target(target_actor, actor_model, TAU)
            update_target(target_critic, critic_model, TAU)
            state = next_state
        print(f"episode {episode} reward {total:.9g}")
    value = critic_model([tf.ones([1, STATE]), tf.ones([1, ACTION])])
    print(f"value {float(value[0, 0]):.9g}")


if __name__ == "__main__":
    main()
