"""The smol experiment: real small weights on a few hundred real photographs."""
