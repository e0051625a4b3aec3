"""An engine on a model that runs on servers with OpenAI's interface (vLLM, SGLang, llama.cpp, hosted).

How requests are sent is `engines.http_client`'s work. What a server cannot give is said so and never made up:
options that are not among its top log-probabilities are `None`, and a server without log-probabilities is an
error that a judge can answer by reading the text instead. What replies look like is `engines.http_replies`'.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from jinja2 import Template

from solon.engines.base import (
    Completion,
    Conversation,
    GenerateRequest,
    OptionRequest,
    Score,
    ScoreRequest,
    options_by_score,
)
from solon.engines.http_client import Client, UnusableError
from solon.engines.http_link import RefusedError
from solon.engines.http_replies import (
    chat_completion,
    echoed,
    prompt_logprobs,
    text_completion,
    top_logprobs,
)
from solon.engines.option_reading import read_options
from solon.errors import LogprobsUnavailableError, RunError
from solon.models import NEXT_QUESTION, TRANSCRIPT
from solon.roles import ServerSettings
from solon.settings import Sampling

_TOP = 20  # The most that OpenAI's interface allows; vLLM's default limit as well.
_OPTION_TOKENS = 4  # "(A)" is two or three tokens in the vocabularies in use.
_REPLY_ONLY = "Reply with {options} and nothing else."
_CHAT, _TEXT = "/chat/completions", "/completions"
_TRANSCRIPT = Template(TRANSCRIPT)

Result = TypeVar("Result")


class HttpEngine:
    """Implements `Engine` of `solon.engines.base`; it has no hidden states.

    `context` is None: a server says no more than that a text is too long, which stops the run with its words.
    """

    def __init__(self, client: Client, model: str, settings: ServerSettings) -> None:
        """Nothing is asked yet. `model` is its name on the servers."""
        self.context: int | None = None
        self._client = client
        self._model = model
        self._settings = settings
        self._chat = settings.interface == "chat"
        self._lacking: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self._model

    @property
    def tokens_generated(self) -> int:
        return self._client.usage.written

    @property
    def tokens_read(self) -> int:
        return self._client.usage.read

    def length(self, conversation: Conversation) -> int:
        raise RunError(f"{self.name}: a server does not tell the length of a conversation beforehand.")

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Completion]:
        """The next turns, as they arrive.

        Ids and log-probabilities stay empty unless `http.tokens` asks for them.

        Raises:
            RunError: a server refuses a request, or fails it at every attempt; or the budget is used up.
        """
        work = self._speak if self._chat else self._continue
        for index, done in self._client.side_by_side(work, requests):
            yield replace(done, index=index)

    def score(self, requests: Sequence[ScoreRequest]) -> Iterator[Score]:
        """Log-probabilities of the continuations, by `prompt_logprobs` (chat) or `echo` (completions).

        Raises:
            LogprobsUnavailableError: the server does not offer them.
            RunError: as in `generate`.
        """
        work = self._score_chat if self._chat else self._score_text
        with self._remembering("scores"):
            for index, done in self._client.side_by_side(work, requests):
                yield replace(done, index=index)

    @contextmanager
    def _remembering(self, what: str) -> Iterator[None]:
        """Raise at once what was found lacking before: nobody pays for finding it out in every batch."""
        if what in self._lacking:
            raise LogprobsUnavailableError(self._lacking[what])
        try:
            yield
        except LogprobsUnavailableError as error:
            self._lacking[what] = str(error)
            raise

    def option_logprobs(self, requests: Sequence[OptionRequest]) -> list[tuple[float, ...] | None]:
        """Log-probability in nats of each option, from the top log-probabilities of a greedy reply.

        Where a request starts the assistant's turn, that start is given as a turn of its own and the options
        are asked for in a further one: not every chat server can continue a turn. The completions interface
        scores the options as texts.

        Raises:
            LogprobsUnavailableError: the server returns none at all.
            RunError: as in `generate`.
        """
        if not self._chat:
            return options_by_score(self, requests)
        with self._remembering("options"):
            found = dict(self._client.side_by_side(self._options, requests))
        return [found[index] for index in range(len(requests))]

    def _speak(self, request: GenerateRequest) -> Completion:
        body = {"messages": _turns(request.conversation), **self._sampled(request)}
        if self._settings.tokens:
            body |= {"logprobs": True, "return_token_ids": True}
        return self._ask(_CHAT, body, lambda reply: chat_completion(reply, self._settings.tokens))

    def _continue(self, request: GenerateRequest) -> Completion:
        prompt = transcript(request.conversation)
        body = {"prompt": prompt, **self._sampled(request), "stop": [NEXT_QUESTION]}
        if self._settings.tokens:
            body |= {"logprobs": 1, "return_token_ids": True}
        return self._ask(_TEXT, body, lambda reply: text_completion(reply, self._settings.tokens))

    @staticmethod
    def _sampled(request: GenerateRequest) -> dict[str, Any]:
        sampling: Sampling = request.sampling
        return {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,
        }

    def _options(self, request: OptionRequest) -> tuple[float, ...] | None:
        turns = _turns(request.conversation)
        if request.start.strip():
            asked = _REPLY_ONLY.format(options=" or ".join(request.options))
            turns += [_turn("assistant", request.start.strip()), _turn("user", asked)]
        body = {"messages": turns, "max_tokens": _OPTION_TOKENS, "temperature": 0}

        def read(reply: dict[str, Any]) -> tuple[float, ...] | None:
            found = top_logprobs(reply)
            if found is None:
                raise UnusableError("no log-probabilities", self._no_logprobs("returns no log-probabilities"))
            return read_options(found, request.options)

        try:
            return self._ask(_CHAT, {**body, "logprobs": True, "top_logprobs": _TOP}, read)
        except RefusedError as error:
            if error.status in (400, 422) and "logprobs" in error.words:
                raise self._no_logprobs("refuses to give log-probabilities") from error
            raise

    def _score_chat(self, request: ScoreRequest) -> Score:
        said = [*_turns(request.conversation), _turn("assistant", request.continuation)]
        whole = self._told(said, add_generation_prompt=False, continue_final_message=True)
        return self._scored(whole, self._told(said[:-1], add_generation_prompt=True))

    def _told(self, turns: list[dict[str, str]], **how: bool) -> list[tuple[str, float]]:
        """Id and log-probability of every token of the prompt."""
        body = {"messages": turns, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0, **how}
        try:
            return self._ask(_CHAT, body, lambda reply: _offered(prompt_logprobs(reply), self._no_scores()))
        except RefusedError as error:
            if error.status in (400, 422) and any(name in error.words for name in ("prompt_logprobs", *how)):
                raise self._no_scores() from error
            raise

    def _score_text(self, request: ScoreRequest) -> Score:
        prompt = transcript(request.conversation)
        return self._scored(self._echoed(prompt + request.continuation), self._echoed(prompt))

    def _echoed(self, text: str) -> list[tuple[str, float]]:
        """Every token of the text, and its log-probability."""
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        try:
            return self._ask(_TEXT, body, lambda reply: _offered(echoed(reply), self._no_scores()))
        except RefusedError as error:
            if "echo" in error.words:
                raise self._no_scores() from error
            raise

    def _scored(self, whole: Sequence[tuple[str, float]], before: Sequence[tuple[str, float]]) -> Score:
        """Of the tokens that the whole text has behind the conversation's."""
        if [token for token, _ in whole[: len(before)]] != [token for token, _ in before]:
            raise RunError(
                f"{self.name}: the server writes a begun answer otherwise than the conversation alone, "
                "so the answer's cannot be told apart. Use a local model, or another judge."
            )
        logprobs = [logp for _, logp in whole[len(before) :]]
        if not logprobs:
            raise RunError("an empty continuation cannot be scored. Leave empty texts out.")
        return Score(tuple(logprobs), prompt_tokens=len(before))

    def _ask(self, path: str, body: dict[str, Any], read: Callable[[dict[str, Any]], Result]) -> Result:
        if self._settings.template:  # The chat interface alone has one
            body = {**body, "chat_template_kwargs": self._settings.template}
        return self._client.post(path, {"model": self._model, **body}, read, int(body["max_tokens"]))

    def _no_logprobs(self, what: str) -> LogprobsUnavailableError:
        return LogprobsUnavailableError(
            f"{self._client.first} {what} of {self._model}. Use a server that does (vLLM, SGLang, "
            "llama.cpp), or the judge chain_of_thought, which reads the verdict from the text."
        )

    def _no_scores(self) -> LogprobsUnavailableError:
        how = "prompt_logprobs" if self._chat else "echo"
        return LogprobsUnavailableError(
            f"{self._client.first} does not return the log-probabilities of given texts (`{how}`), which "
            "the judge likelihood stands on. Use vLLM, a local model, or another judge."
        )


def transcript(conversation: Conversation) -> str:
    """The conversation as a plain text that a base model goes on with, without the model's special tokens."""
    turns = _turns(conversation)
    return str(_TRANSCRIPT.render(messages=turns, add_generation_prompt=True, eos_token=""))


def _offered(told: Result | None, otherwise: RunError) -> Result:
    if told is None:
        raise UnusableError("no log-probabilities of the given text", otherwise)
    return told


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _turns(conversation: Conversation) -> list[dict[str, str]]:
    return [_turn(m.role, m.content) for m in conversation]
