"""Engine and Stream: the Python API over the native module."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Union, cast

from . import _native
from ._model_dir import checked_model_dir, default_model_dir
from ._native import Error, Event
from ._types import ChatResult, EngineOptions, EngineStats, Generation, Message, ModelInfo, Sampling

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Prompt = Union[str, Sequence[int]]

_SAMPLING_FIELDS = frozenset(Sampling.__annotations__)
_OPTION_FIELDS = frozenset(EngineOptions.__annotations__)
# Fields of a request itself; the others belong to its "sampling".
_REQUEST_FIELDS = frozenset({"max_tokens", "stop", "stop_ids", "ignore_eos", "skip_special", "constraint", "priority",
                             "timeout_s"})
# Z.ai's recommendation for the model, and a length that ends.
_DEFAULTS: Dict[str, Any] = {"max_tokens": 512, "temperature": 1.0, "top_p": 0.95}


def _refuse_unknown(given: Mapping[str, Any], known: "frozenset[str]", what: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise TypeError(f"unknown {what} {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _request_json(ids: List[int], sampling: Mapping[str, Any]) -> str:
    """The request as glint_submit reads it. TypeError for a name it does not know; values are the engine's to check."""
    _refuse_unknown(sampling, _SAMPLING_FIELDS, "sampling parameter")
    given = {**_DEFAULTS, **{name: value for name, value in sampling.items() if value is not None}}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if "constraint" in given and not isinstance(given["constraint"], str):
        given["constraint"] = _dump(given["constraint"])
    for name in ("stop", "stop_ids"):
        if name in given:
            given[name] = list(given[name])
    if "logit_bias" in given:
        given["logit_bias"] = [[int(token), float(bias)] for token, bias in dict(given["logit_bias"]).items()]
    request: Dict[str, Any] = {name: given.pop(name) for name in _REQUEST_FIELDS & set(given)}
    return _dump({"ids": ids, **request, "sampling": given})


class Stream:
    """A running request: an iterator of its events.

    Each `Event` has `text` (whole characters; may be empty or hold several tokens' text), `token` (-1: none), and in
    the last one `finish_reason` and `usage`. Ending early cancels the request: `close()`, leaving a `with` block, or
    letting go of the stream (as `break` does when nothing else holds it). One thread at a time may iterate; `cancel()`
    may come from any.
    """

    def __init__(self, native: _native.Engine, request_json: str, prompt_tokens: int) -> None:
        self._native = native
        self._id: Optional[int] = None
        self.prompt_tokens = prompt_tokens
        self.prefill_done = 0  # prompt tokens read so far
        self._texts: List[str] = []
        self._ids: List[int] = []
        self._logprobs: List[float] = []
        self._top_logprobs: List[List["tuple[int, float]"]] = []
        self._last: Optional[Event] = None
        self._id = native.submit(request_json)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event with text, a token or the end. Raises Error when the request failed."""
        while True:
            event = self.next_event()
            if event is None:
                raise StopIteration
            if event.text or event.token >= 0 or event.finish_reason:
                return event

    def next_event(self, timeout_s: Optional[float] = None) -> Optional[Event]:
        """The next event, prefill progress included; None after the last one, or when none came within `timeout_s`.

        `finished` tells the two apart.
        """
        if self._id is None:
            return None
        event = self._native.next(self._id, -1 if timeout_s is None else max(0, round(timeout_s * 1000)))
        if event is None:
            return None
        self.prefill_done = event.prefill_done
        if event.token >= 0:
            self._ids.append(event.token)
            if event.logprob is not None:
                self._logprobs.append(event.logprob)
                self._top_logprobs.append(event.top_logprobs)
        if event.text:
            self._texts.append(event.text)
        if event.finish_reason is not None:
            self._last = event
            self._id = None
            if event.finish_reason == "error":
                raise Error(event.error)
        return event

    @property
    def finished(self) -> bool:
        """No event will come any more."""
        return self._id is None

    def cancel(self) -> None:
        """Ends the request now. Its last event, with finish_reason "cancelled", is still to be read."""
        if self._id is not None:
            self._native.cancel(self._id)

    def close(self) -> None:
        """Cancels what is still running and forgets it; no event comes any more."""
        request, self._id = self._id, None
        if request is not None:
            self._native.discard(request)

    def result(self) -> Generation:
        """Reads to the end: all of the answer, also what was iterated before. Raises Error when the request failed."""
        try:
            while not self.finished:
                self.next_event()
        finally:
            self.close()
        last = self._last
        if last is None or last.finish_reason is None:
            raise Error("the stream was closed before its end")
        if last.finish_reason == "error":
            raise Error(last.error)
        asked = bool(self._logprobs)
        return Generation(
            text="".join(self._texts),
            ids=list(self._ids),
            finish_reason=last.finish_reason,
            usage=last.usage,
            stop_string=last.stop_string,
            logprobs=list(self._logprobs) if asked else None,
            top_logprobs=list(self._top_logprobs) if asked else None,
        )

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_id", None) is not None:
            self.close()


class Engine:
    """One loaded model. Thread-safe; requests of all threads run together in batches.

    Args:
        model_dir: a checkpoint directory in the official layout; default: `default_model_dir()`.
        on_load: called with (bytes done, bytes in all) while the model loads.
        options: see `EngineOptions`.

    Raises:
        Error: something about the model or an option's value is wrong.
        TypeError: an option that does not exist.
    """

    def __init__(
        self,
        model_dir: "Union[str, os.PathLike[str], None]" = None,
        *,
        on_load: Optional[Callable[[int, int], object]] = None,
        **options: "Unpack[EngineOptions]",
    ) -> None:
        _refuse_unknown(options, _OPTION_FIELDS, "engine option")
        given: Dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if model_dir is not None:
            given["model_dir"] = checked_model_dir(model_dir, "model_dir")
        elif not given.get("synthetic_layers"):
            given["model_dir"] = default_model_dir()
        self._native = _native.Engine(_dump(given), on_load)
        self._info: ModelInfo = json.loads(self._native.info())

    # ---- generating ----

    def generate(self, prompt: Prompt, *, literal: bool = False, **sampling: "Unpack[Sampling]") -> Generation:
        """Continues `prompt` and returns the whole answer.

        Args:
            prompt: text, taken exactly as it stands (the model's texts begin with "[gMASK]<sop>"; see `chat` for the
                chat format), or token ids [n].
            literal: tags such as <|user|> in the text are plain text.
            sampling: see `Sampling`.

        Raises:
            Error: a request that can never run (ids outside the vocabulary, longer than the context, a parameter out of
                range), or one that failed.
            TypeError: a parameter that does not exist.
        """
        return self.stream(prompt, literal=literal, **sampling).result()

    def stream(self, prompt: Prompt, *, literal: bool = False, **sampling: "Unpack[Sampling]") -> Stream:
        """Like `generate`, but returns at once: a `Stream` of events, whose texts in order are the answer."""
        ids = self._prompt_ids(prompt, literal)
        return Stream(self._native, _request_json(ids, sampling), len(ids))

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        literal: bool = False,
        per_prompt: Optional[Sequence[Mapping[str, Any]]] = None,
        **sampling: "Unpack[Sampling]",
    ) -> List[Generation]:
        """Runs all prompts together and returns their answers in the prompts' order.

        All are submitted before the first is awaited, so that they share the engine's steps; each answer is the same as
        alone. `per_prompt` [len(prompts)] holds parameters that differ, over those given for all. If one prompt is
        refused or fails, all are cancelled and its Error is raised.
        """
        if per_prompt is not None and len(per_prompt) != len(prompts):
            raise ValueError(f"per_prompt: found {len(per_prompt)} entries; expected one a prompt, {len(prompts)}")
        requests = []
        for i, prompt in enumerate(prompts):
            ids = self._prompt_ids(prompt, literal)
            own = {**sampling, **(per_prompt[i] if per_prompt is not None else {})}
            requests.append((_request_json(ids, own), len(ids)))
        streams: List[Stream] = []
        try:
            for request, n in requests:
                streams.append(Stream(self._native, request, n))
            return [stream.result() for stream in streams]
        finally:
            for stream in streams:
                stream.cancel()
            for stream in streams:
                stream.close()

    def chat(
        self,
        messages: Union[str, Sequence[Message]],
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        enable_thinking: bool = True,
        clear_thinking: Optional[bool] = None,
        **sampling: "Unpack[Sampling]",
    ) -> ChatResult:
        """The assistant's answer to a conversation, split into reasoning, content and tool calls.

        Args:
            messages: a list of {"role", "content"}, or the text of one user message.
            tools: OpenAI's: {"type": "function", "function": {"name", "description", "parameters": JSON schema}}.
            enable_thinking: False makes the model answer at once.
            clear_thinking: False keeps the reasoning of earlier turns in the prompt.
            sampling: see `Sampling`. With thinking, leave room in max_tokens for the reasoning.
        """
        prompt = self.render_chat(messages, tools=tools, enable_thinking=enable_thinking, clear_thinking=clear_thinking)
        constraint = sampling.get("constraint")
        if constraint is not None and not isinstance(constraint, str):
            sampling["constraint"] = {"thinking": enable_thinking, **constraint}
        generation = self.generate(prompt, **sampling)
        return self.chat_result(generation, tools=tools, enable_thinking=enable_thinking)

    def chat_result(
        self,
        generation: Generation,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        enable_thinking: bool = True,
    ) -> ChatResult:
        """An answer to a prompt of `render_chat`, taken apart: what `chat` does last, for streams and batches."""
        parsed = self.parse_output(
            generation.text,
            tools=tools,
            enable_thinking=enable_thinking,
            finish_reason="length" if generation.finish_reason in ("length", "cancelled", "timeout") else "stop",
        )
        return ChatResult(parsed["content"], parsed["reasoning_content"], parsed["tool_calls"], generation)

    def score(self, text_or_ids: Prompt, *, literal: bool = False) -> List[float]:
        """log p(ids[i + 1] | ids[0 … i]) for every i: [n - 1] natural logarithms, by teacher forcing."""
        return self._native.score(self._prompt_ids(text_or_ids, literal))

    # ---- text ----

    def encode(self, text: str, *, literal: bool = False) -> List[int]:
        """Token ids [n] of a text. Nothing is added. `literal`: tags such as <|user|> in it are plain text."""
        return self._native.encode(text.encode("utf-8"), literal)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, errors: str = "replace") -> str:
        """The text of token ids [n]. `errors` is for ids that cut a character in two, as in `bytes.decode`."""
        return self._native.decode(_id_list(ids), skip_special).decode("utf-8", errors)

    def render_chat(
        self,
        messages: Union[str, Sequence[Message]],
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        enable_thinking: bool = True,
        clear_thinking: Optional[bool] = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation in the model's chat format, up to where its answer begins."""
        request: Dict[str, Any] = {
            "messages": [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages),
            "enable_thinking": enable_thinking,
            "add_generation_prompt": add_generation_prompt,
        }
        if tools:
            request["tools"] = list(tools)
        if clear_thinking is not None:
            request["clear_thinking"] = clear_thinking
        return self._native.render_chat(_dump(request))

    def parse_output(
        self,
        text: str,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        enable_thinking: bool = True,
        finish_reason: str = "stop",
    ) -> Dict[str, Any]:
        """{"reasoning_content", "content", "tool_calls"} of what the model wrote.

        `tools` give the types of the arguments; `finish_reason="length"` says that the text was cut off.
        """
        options: Dict[str, Any] = {"enable_thinking": enable_thinking, "finish_reason": finish_reason}
        if tools:
            options["tools"] = list(tools)
        return cast(Dict[str, Any], json.loads(self._native.parse_output(text, _dump(options))))

    # ---- state ----

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self._info

    def stats(self) -> EngineStats:
        """Counters and state now."""
        return cast(EngineStats, json.loads(self._native.stats()))

    def notices(self) -> List[str]:
        """What went wrong since the last call that costs speed and no result: a damaged file in cache_dir, a full disk."""
        return self._native.notices()

    @property
    def closed(self) -> bool:
        return self._native.closed

    def close(self) -> None:
        """Cancels all requests and frees the model. May be called twice."""
        self._native.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else self._info["backend"]
        return f"<glint.Engine {self._info['model_dir'] or 'synthetic'}: {state}>"

    def _prompt_ids(self, prompt: Prompt, literal: bool) -> List[int]:
        return self.encode(prompt, literal=literal) if isinstance(prompt, str) else _id_list(prompt)


def _id_list(ids: Sequence[int]) -> List[int]:
    """Token ids as ints; whole floats pass, since some hosts carry ids as floats."""
    out = []
    for value in ids:
        token = int(value)
        if token != value or not -(2**31) <= token < 2**31:
            raise ValueError(f"token id: found {value!r}; expected a whole number of 32 bits")
        out.append(token)
    return out
