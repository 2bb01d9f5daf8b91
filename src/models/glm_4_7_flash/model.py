"""GLM47FlashModel: the checkpoint that a config names, opened when it is first needed."""

from __future__ import annotations

import logging
import threading
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Union, cast

from ._glint import glint
from .config import GENERATION_FIELDS, GLM47FlashConfig

_log = logging.getLogger("glint.plugin")

PREFIX = "[gMASK]<sop>"  # what every text of the training began with; the chat format has it built in

# What a call that generates takes by keyword.
PARAMETERS = frozenset(GENERATION_FIELDS) | {
    "chat",
    "clear_thinking",
    "enable_thinking",
    "ignore_eos",
    "literal",
    "logit_bias",
    "stop",
    "stop_ids",
    "system",
    "tools",
}


class Job(NamedTuple):
    """A request ready to be submitted."""

    ids: List[int]
    sampling: Dict[str, Any]
    chat: bool
    tools: Optional[Sequence[Mapping[str, Any]]]
    enable_thinking: bool


class GLM47FlashModel:
    """A model and its defaults; thread-safe. `engine` is the glint.Engine under it."""

    def __init__(self, config: Optional[GLM47FlashConfig] = None) -> None:
        self.config = config if config is not None else GLM47FlashConfig()
        self._engine: Optional[glint.Engine] = None
        self._lock = threading.RLock()

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    @property
    def engine(self) -> "glint.Engine":
        """The engine; opens the model when it is not open. Raises glint.Error when it cannot be."""
        with self._lock:
            if self._engine is None:
                self._engine = glint.Engine(self.config.model_path, **self.config.engine_options())
                self._read_checkpoint_config(self._engine.info["model_dir"])
            return self._engine

    def close(self) -> None:
        """Ends all requests and frees the model; the next use opens it again."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def reconfigure(self, values: Mapping[str, Any]) -> List[str]:
        """Sets config fields; an engine whose options change is closed and opens again on the next use.

        Returns the names that are no field. Raises glint.Error when requests are running that closing would end.
        """
        with self._lock:
            before = (self.config.model_path, self.config.engine_options())
            kept = self.config.to_dict()
            unknown = self.config.update(values)
            if self._engine is not None and before != (self.config.model_path, self.config.engine_options()):
                stats = self._engine.stats()
                if stats["running_requests"] or stats["waiting_requests"]:
                    self.config.update(kept)
                    raise glint.Error("engine options: found running requests; expected none while options change")
                self.close()
            if self._engine is not None:  # its architecture is not the caller's to set
                self._read_checkpoint_config(self._engine.info["model_dir"])
            return unknown

    def job(self, prompt: Union[str, Sequence[int], Sequence[Mapping[str, Any]]], given: Mapping[str, Any]) -> Job:
        """A request for a text, token ids or messages, with the config's defaults for what is not given.

        A text is a user's message unless chat=False; then it is continued, after "[gMASK]<sop>" if it does not begin
        with that. Token ids are continued as they are. Raises TypeError for a parameter that does not exist.
        """
        unknown = sorted(set(given) - PARAMETERS)
        if unknown:
            raise TypeError(
                f"unknown generation parameter {', '.join(unknown)}; known: {', '.join(sorted(PARAMETERS))}"
            )
        params = {name: getattr(self.config, name) for name in GENERATION_FIELDS}
        params.update({name: value for name, value in given.items() if value is not None})
        tools, system = params.pop("tools", None), params.pop("system", None)
        literal = bool(params.pop("literal", False))
        enable_thinking = bool(params.pop("enable_thinking", True))
        clear_thinking = params.pop("clear_thinking", None)
        params["max_tokens"] = params.pop("max_new_tokens")
        if not params.pop("do_sample"):
            params["temperature"] = 0.0

        messages = _messages(prompt, system)
        if isinstance(prompt, str) and not params.pop("chat", True):
            messages = None
        params.pop("chat", None)
        if messages is None and (tools or system):
            raise ValueError("tools and system belong to the chat format: leave them out, or chat=False")
        if messages is not None:
            text = self.engine.render_chat(
                messages, tools=tools, enable_thinking=enable_thinking, clear_thinking=clear_thinking
            )
            ids = self.engine.encode(text)
        elif isinstance(prompt, str):
            ids = self.engine.encode(prompt, literal=literal)
            if not prompt.startswith(PREFIX):
                ids = self.engine.encode(PREFIX) + ids
        else:
            ids = [int(cast(int, token)) for token in prompt]
        return Job(ids, params, messages is not None, tools, enable_thinking)

    def start(self, job: Job) -> "glint.Stream":
        return self.engine.stream(job.ids, **job.sampling)

    def answer(self, job: Job, generation: "glint.Generation") -> "glint.ChatResult":
        """The answer taken apart; that of a text that was continued is all content."""
        if not job.chat:
            return glint.ChatResult(generation.text, "", [], generation)
        result = self.engine.chat_result(generation, tools=job.tools, enable_thinking=job.enable_thinking)
        if not result.content and result.reasoning_content and generation.finish_reason == "length":
            _log.warning(
                "the answer was cut off inside its think block after %d tokens: raise max_new_tokens, or pass"
                " enable_thinking=False",
                len(generation.ids),
            )
        return result

    def run(self, jobs: Iterable[Job]) -> "List[Union[glint.ChatResult, glint.Error]]":
        """Runs jobs together, as many at a time as the engine takes; results in order, failures as their Error."""
        started: List[Any] = []
        try:
            for job in jobs:
                try:
                    started.append((job, self.start(job)))
                except glint.Error as error:
                    started.append((job, error))
            results: List[Any] = []
            for job, stream in started:
                try:
                    results.append(stream if isinstance(stream, glint.Error) else self.answer(job, stream.result()))
                except glint.Error as error:
                    results.append(error)
            return results
        finally:
            for _, stream in started:  # after an interrupt some are still running
                if isinstance(stream, glint.Stream):
                    stream.close()

    def _read_checkpoint_config(self, model_dir: str) -> None:
        """Takes over the checkpoint's architecture, and says so where it is not what was asked for."""
        if not model_dir:
            return
        actual = GLM47FlashConfig.from_pretrained(model_dir)
        for name in sorted(self.config.architecture_names()):
            found = getattr(actual, name)
            asked = getattr(self.config, name)
            if asked not in (found, getattr(GLM47FlashConfig(), name)):
                _log.warning("%s=%r has no effect: the checkpoint says %r", name, asked, found)
            setattr(self.config, name, found)


def _messages(prompt: Any, system: Optional[str]) -> "Optional[List[Mapping[str, Any]]]":
    """The conversation that a prompt is, or None for token ids."""
    if isinstance(prompt, str):
        messages: List[Mapping[str, Any]] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        messages = list(prompt)
    else:
        return None
    return [{"role": "system", "content": system}, *messages] if system else messages
