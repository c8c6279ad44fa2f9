"""The two-dimensional bandit of the Diffusion-QL paper, and what it is compared with.

The methods with a policy of another kind than diffusion are baselines of this figure
alone; each is a module with `Config` and `make`, like those of `jdql.agents`, so that
`--config=bandit --config.agent=experiments.studies.bandit.ql_mmd` trains one of them.
"""
