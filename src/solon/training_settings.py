"""The settings of what is trained: fine-tuning, the reward model, and reinforcement."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from solon.settings import Sampling, Settings


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021) on all linear layers, of all blocks or the upper ones."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    layers: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the blocks, from the last, that have adapters; PPO reads the others once",
    )


class PolicyLora(Lora):
    """A policy's adapters: on the upper third of the blocks, which makes PPO's steps nearly twice as fast."""

    layers: float = Field(default=0.33, gt=0, le=1, description="As in Lora")


class Optimiser(Settings):
    """AdamW with a linear decay to 0."""

    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=8, ge=1, description="Rows (or pairs) an optimisation step")
    max_grad_norm: float = Field(default=1.0, gt=0)
    save_every: int = Field(default=10, ge=1, description="Steps between checkpoints")


class Finetune(Settings):
    """SL-CAI: supervised fine-tuning on the revisions."""

    use: Literal["final", "all"] = Field(default="final", description="Revisions of which rounds")
    best: float = Field(
        default=1.0, gt=0, le=1, description="Share of these revisions that is used: the surest improvements"
    )
    helpful: bool = Field(default=True, description="Mix in the model's own answers to helpful prompts")
    helpful_tokens: int | None = Field(
        default=None, ge=1, description="Of these answers only so many first tokens are learnt"
    )
    trim: bool = Field(
        default=True, description="End texts that hit the token limit at their last full sentence"
    )
    method: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    optimiser: Optimiser = Optimiser(learning_rate=5e-4, epochs=2)
    max_tokens: int = Field(default=512, ge=16, description="Longer rows are cut from the right")


class Reward(Settings):
    """The reward (preference) model."""

    heldout: float = Field(default=0.2, gt=0, lt=1, description="Share of prompts whose pairs test it")
    pooling: Literal["last", "mean"] = Field(
        default="last", description="Of an answer's states: its last token's, or the mean over its tokens"
    )
    depth: float = Field(
        default=1.0, gt=0, le=1, description="Share of the blocks, from the first, below its head"
    )
    head: Literal["random", "fitted", "gated"] = Field(
        default="random",
        description="Where the head starts: fitted is by logistic regression on the pairs; gated also has a "
        "second direction that the kind of prompt turns on",
    )
    lora: Lora = Lora()
    optimiser: Optimiser = Optimiser(learning_rate=2e-4, epochs=1)
    max_tokens: int = Field(default=512, ge=16)

    @property
    def gated(self) -> bool:
        """Whether the head has a gate, which learns what kind a prompt is of."""
        return self.head == "gated"


class Guard(Settings):
    """Watches for over-optimisation (Gao et al. 2023, arXiv 2210.10760): reward up, judged worse."""

    every: int = Field(default=10, ge=0, description="Steps between checks; 0: none")
    prompts: int = Field(
        default=24, ge=8, description="Training prompts answered at each check, half of them helpful"
    )


class Openings(Settings):
    """First words of the SL model's answers, which show on which prompts it is undecided."""

    prompts: int = Field(default=96, ge=0, description="Red-team training prompts")
    helpful: int = Field(default=96, ge=0, description="Helpful training prompts")
    batch: int = Field(default=64, ge=1, description="Prompts a batch")


Algorithm = Literal["ppo", "rloo", "grpo", "dpo"]


class Reinforce(Settings):
    """RL-CAI: PPO (Schulman et al. 2017) with a KL penalty against the SL model, or a neighbour of it."""

    algorithm: tuple[Algorithm, ...] = Field(
        default=("ppo",),
        min_length=1,
        description="ppo, or TRL's rloo, grpo (same reward and prompts) and dpo (the labels alone). "
        "One, or a list to compare; the first is the run's RL model",
    )
    steps: int = Field(default=20, ge=1, description="Rollout batches")
    episodes: int = Field(default=16, ge=2, description="Episodes a step, of all processes together")
    helpful_share: Annotated[float, Field(ge=0, lt=1)] | Literal["balanced"] = Field(
        default=0.33,
        description="Share of helpful prompts; balanced: as many as push as hard against refusing as "
        "red-team prompts push for it",
    )
    sampling: Sampling = Sampling(max_tokens=48, temperature=1.0)
    epochs: int = Field(default=2, ge=1, description="Passes over each rollout batch")
    minibatch: int = Field(default=8, ge=1, description="Episodes an optimisation step")
    batch_tokens: int = Field(
        default=2048, ge=64, description="Tokens read at once in a step's micro-batches; the loss is the same"
    )
    learning_rate: float = Field(default=3e-4, gt=0)
    beta: float = Field(default=0.05, ge=0, description="KL coefficient, per token in nats")
    kl_target: float | None = Field(
        default=None, gt=0, description="Adapt beta to this KL an episode, in nats (Ziegler et al. 2019)"
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="Episodes over which beta adapts")
    epoch_kl: float | None = Field(
        default=None,
        gt=0,
        description="End a step's epochs once a token's KL from the old policy exceeds this",
    )
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1, description="GAE's lambda")
    clip: float = Field(default=0.2, gt=0, description="Ratio clip")
    value_clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    value_warmup: int = Field(default=0, ge=0, description="First steps in which the critic alone learns")
    missing_end_score: float | None = Field(
        default=-1.0, description="Score of an answer without end token; none: the reward model's score"
    )
    score_clip: float | None = Field(
        default=None, gt=0, description="Clip normalised scores to plus or minus this"
    )
    over_refusal: float = Field(
        default=0.0, ge=0, description="Taken from the score of an answer that refuses a helpful prompt"
    )
    over_refusal_target: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Adapt over_refusal, so that this share of a step's answers to helpful prompts refuses",
    )
    undecided: float = Field(default=0.0, ge=0, le=1, description="Share of prompts whose openings disagree")
    openings: Openings = Openings()
    centre_scores: Literal["none", "kind", "prompt"] = Field(
        default="none",
        description="Count scores from the mean of their kind, or of the prompt's `group` other answers",
    )
    whiten_rewards: bool = Field(default=False, description="Scale token rewards to deviation 1")
    reward: str | None = Field(
        default=None,
        description="`file.py:name` of a function (episodes, scores) -> scores that shapes the reward",
    )
    max_grad_norm: float = Field(default=1.0, gt=0)
    method: Literal["lora", "full"] = Field(
        default="lora", description="lora: all models on one trunk; full: a second copy of the weights learns"
    )
    critic: Literal["head", "adapter"] = Field(
        default="head",
        description="head: on the policy's own states; adapter: its own, started from the reward model",
    )
    lora: PolicyLora = PolicyLora()
    group: int = Field(
        default=4,
        ge=2,
        description="Answers a prompt of rloo and grpo, of ppo with centre_scores: prompt, and openings",
    )
    dpo_beta: float = Field(default=0.1, gt=0, description="DPO's beta, for which KL there is no penalty")
    guard: Guard = Guard()
    max_prompt_tokens: int = Field(default=256, ge=8, description="Longer prompts are an error")

    @property
    def answers_each(self) -> int:
        """How many answers PPO samples to a prompt of a step."""
        return self.group if self.centre_scores == "prompt" else 1

    @field_validator("algorithm", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _openings_suffice(self) -> "Reinforce":
        opened = (self.openings.prompts, self.openings.helpful)
        if self.helpful_share == "balanced" and not all(opened):
            raise ValueError("helpful_share: balanced needs openings.prompts and openings.helpful above 0")
        if self.undecided and not any(opened):
            raise ValueError("undecided needs openings.prompts or openings.helpful above 0")
        return self

    @model_validator(mode="after")
    def _targets_have_a_hold(self) -> "Reinforce":
        if self.over_refusal_target is not None and "ppo" not in self.algorithm:
            raise ValueError(
                "over_refusal_target is held by ppo alone: add ppo to algorithm, or set it to null"
            )
        if self.over_refusal_target is not None and self.helpful_share == 0:
            raise ValueError("over_refusal_target is held on helpful prompts: raise helpful_share above 0")
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target multiplies beta, which is 0: set beta above 0")
        if self.kl_target is not None and self.kl_horizon <= 0.2 * self.episodes:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon}) must be above a fifth of episodes ({self.episodes}): beta "
                "could reach 0"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> "Reinforce":
        if self.sampling.top_p != 1.0:
            raise ValueError("sampling.top_p must be 1: PPO's ratios need the whole distribution")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature must be above 0: a greedy policy explores nothing")
        if self.minibatch > self.episodes:
            raise ValueError(f"minibatch ({self.minibatch}) must not exceed episodes ({self.episodes})")
        if len(set(self.algorithm)) < len(self.algorithm):
            raise ValueError("algorithm names one twice: list each once")
        online = {"rloo", "grpo"} & set(self.algorithm)
        if (self.answers_each > 1 or online) and self.episodes % self.group:
            raise ValueError(f"episodes ({self.episodes}) must be a multiple of group ({self.group})")
        if online and self.episodes % self.minibatch:
            whole = f"a multiple of minibatch ({self.minibatch}) for rloo and grpo"
            raise ValueError(f"episodes ({self.episodes}) must be {whole}")
        if self.value_warmup >= self.steps:
            raise ValueError(
                f"value_warmup ({self.value_warmup}) must be below steps ({self.steps}), or nothing is learnt"
            )
        return self
