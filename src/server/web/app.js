// The chat page: talks to /v1/chat/completions of the server that it came from and keeps the conversation in memory.
'use strict';

const at = id => document.getElementById(id);
const messages = [];  // the conversation so far, as the API takes it, without the system message
let running = null;   // the AbortController of the answer in the making
let chat = 0;         // counts the chats of this page: an answer that outlives its own belongs to none

const SETTINGS = ['system', 'thinking', 'keep-thinking', 'temperature', 'top_p', 'max_tokens', 'seed', 'tools'];

function element(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function headers() {
  const out = {'Content-Type': 'application/json'};
  if (at('key').value) out.Authorization = 'Bearer ' + at('key').value;
  return out;
}

// ---- settings ---------------------------------------------------------------------------------------------------

function loadSettings() {
  const saved = JSON.parse(localStorage.getItem('glint') || '{}');
  for (const id of SETTINGS) {
    if (!(id in saved)) continue;
    if (at(id).type === 'checkbox') at(id).checked = saved[id]; else at(id).value = saved[id];
  }
  at('key').value = sessionStorage.getItem('glint-key') || '';
}

function saveSettings() {
  const saved = {};
  for (const id of SETTINGS) saved[id] = at(id).type === 'checkbox' ? at(id).checked : at(id).value;
  localStorage.setItem('glint', JSON.stringify(saved));
  sessionStorage.setItem('glint-key', at('key').value);
}

function requestBody() {
  const body = {stream: true, stream_options: {include_usage: true}, messages: [...messages]};
  if (at('system').value) body.messages.unshift({role: 'system', content: at('system').value});
  body.chat_template_kwargs = {enable_thinking: at('thinking').checked, clear_thinking: !at('keep-thinking').checked};
  for (const id of ['temperature', 'top_p', 'max_tokens', 'seed']) {
    if (at(id).value !== '') body[id] = Number(at(id).value);
  }
  if (at('tools').value.trim()) body.tools = JSON.parse(at('tools').value);
  return body;
}

// ---- showing ----------------------------------------------------------------------------------------------------

// Code fences become blocks; everything else is text as it is.
function showText(box, text) {
  box.replaceChildren();
  text.split(/^```[^\n]*\n?/m).forEach((part, i) => {
    if (part) box.append(i % 2 ? element('pre', '', part) : element('span', 'text', part));
  });
}

function follow() {
  const talk = at('talk');
  if (talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120) talk.scrollTop = talk.scrollHeight;
}

class AnswerView {
  constructor() {
    this.box = element('article', 'assistant');
    this.think = element('details');
    this.thinkTitle = element('summary', '', 'Thinking…');
    this.thinkText = element('div', 'text');
    this.think.append(this.thinkTitle, this.thinkText);
    this.think.hidden = true;
    this.think.open = true;
    this.content = element('div');
    this.calls = element('div');
    this.note = element('div', 'note');
    this.box.append(this.think, this.content, this.calls, this.note);
    at('talk').append(this.box);
    this.message = {role: 'assistant', content: ''};
  }

  add(delta) {
    const m = this.message;
    if (delta.reasoning_content) {
      m.reasoning_content = (m.reasoning_content || '') + delta.reasoning_content;
      this.think.hidden = false;
      this.thinkText.textContent = m.reasoning_content;
    }
    if (delta.content) {
      if (!m.content) this.endThinking();
      m.content += delta.content;
      showText(this.content, m.content);
    }
    for (const piece of delta.tool_calls || []) this.addCall(piece);
    follow();
  }

  addCall(piece) {
    this.endThinking();
    const calls = this.message.tool_calls = this.message.tool_calls || [];
    if (!calls[piece.index]) {
      calls[piece.index] = {id: piece.id, type: 'function', function: {name: piece.function.name, arguments: ''}};
      const view = element('details', 'call');
      view.open = true;
      view.append(element('summary', '', 'calls ' + piece.function.name), element('pre', 'arguments'));
      this.calls.append(view);
    }
    const call = calls[piece.index].function;
    call.arguments += piece.function.arguments || '';
    this.calls.children[piece.index].querySelector('.arguments').textContent = call.arguments;
  }

  endThinking() {
    if (this.think.hidden || this.thinkTitle.textContent !== 'Thinking…') return;
    this.thinkTitle.textContent = 'Thought';
    this.think.open = false;
  }

  // The model stopped while still thinking: the stream repeated it all as the answer.
  end() {
    this.endThinking();
    if (this.message.reasoning_content && this.message.reasoning_content === this.message.content) {
      delete this.message.reasoning_content;
      this.think.hidden = true;
    }
  }

  fail(text) {
    this.endThinking();
    this.note.classList.add('error');
    this.note.textContent = text;
    follow();
  }

  askForResults() {
    const fields = [...this.calls.children].map(view => {
      const field = element('textarea');
      field.rows = 2;
      field.placeholder = 'what the tool gives back';
      field.setAttribute('aria-label', 'Result of the call');
      view.append(field);
      return field;
    });
    const button = element('button', '', 'Send the results');
    button.type = 'button';
    button.onclick = () => {
      if (running) return;
      button.remove();
      this.message.tool_calls.forEach((call, i) => {
        messages.push({role: 'tool', tool_call_id: call.id, content: fields[i].value});
        fields[i].replaceWith(element('pre', '', fields[i].value));
      });
      answer();
    };
    this.calls.append(button);
    follow();
  }
}

// ---- talking ----------------------------------------------------------------------------------------------------

// The JSON of each "data:" line of a stream, until [DONE].
async function* streamed(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split('\n');
    text = lines.pop();
    for (const line of lines) {
      if (line === 'data: [DONE]') return;
      if (line.startsWith('data: ')) yield JSON.parse(line.slice(6));
    }
  }
}

function setRunning(controller) {
  running = controller;
  at('send').hidden = controller !== null;
  at('stop').hidden = controller === null;
  at('again').disabled = controller !== null || !messages.some(m => m.role === 'user');
}

function showSpeed(tokens, began, first) {
  const seconds = (performance.now() - first) / 1000;
  const rate = tokens > 1 && seconds > 0 ? ((tokens - 1) / seconds).toFixed(1) + ' tok/s' : '';
  at('speed').textContent = `${rate} · first after ${((first - began) / 1000).toFixed(2)} s`;
}

async function answer() {
  const view = new AnswerView();
  const mine = chat;
  const began = performance.now();
  let first = 0;
  let pieces = 0;
  let finish = '';
  setRunning(new AbortController());
  try {
    const response = await fetch('v1/chat/completions', {
      method: 'POST', headers: headers(), body: JSON.stringify(requestBody()), signal: running.signal});
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of streamed(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices[0];
      if (choice) {
        if (choice.delta.content || choice.delta.reasoning_content || choice.delta.tool_calls) {
          first = first || performance.now();
          showSpeed(++pieces, began, first);
        }
        view.add(choice.delta);
        finish = choice.finish_reason || finish;
      }
      if (chunk.usage) {
        showSpeed(chunk.usage.completion_tokens, began, first || performance.now());
        view.note.textContent = `${chunk.usage.prompt_tokens} tokens read, ` +
          `${chunk.usage.completion_tokens} written` + (finish === 'length' ? ', cut off' : '');
      }
    }
    view.end();
  } catch (error) {
    if (error.name === 'AbortError') view.note.textContent = 'stopped'; else view.fail(error.message);
    view.end();
  }
  if (mine === chat && (view.message.content || view.message.tool_calls)) messages.push(view.message);
  setRunning(null);
  gauges();
  if (finish === 'tool_calls' && mine === chat) view.askForResults();
}

function ask(text) {
  messages.push({role: 'user', content: text});
  at('talk').append(element('article', 'user', text));
  at('talk').scrollTop = at('talk').scrollHeight;
  return answer();
}

function newChat() {
  if (running) running.abort();
  ++chat;
  messages.length = 0;
  at('talk').replaceChildren();
  at('speed').textContent = '';
  at('again').disabled = true;
  at('question').focus();
}

// The last question once more: what came after it goes.
function again() {
  while (messages.length && messages[messages.length - 1].role !== 'user') messages.pop();
  const talk = at('talk');
  while (talk.lastChild && talk.lastChild.className !== 'user') talk.lastChild.remove();
  if (messages.length) answer();
}

// ---- the server's state -----------------------------------------------------------------------------------------

async function gauges() {
  if (document.hidden) return;
  try {
    const response = await fetch('metrics', {headers: headers()});
    if (!response.ok) throw new Error(response.status === 401 ? 'an API key is needed' : 'HTTP ' + response.status);
    const values = {};
    for (const line of (await response.text()).split('\n')) {
      const found = line.match(/^(glint_[a-z_]+)(\{model="([^"]*)".*\})? (\S+)$/);
      if (!found) continue;
      values[found[1]] = Number(found[4]);
      if (found[1] === 'glint_model_info') at('model').textContent = found[3];
    }
    const used = values.glint_cache_tokens_used || 0;
    const all = values.glint_cache_tokens || 1;
    at('running').max = Math.max(8, values.glint_running_requests || 0);
    at('running').value = values.glint_running_requests || 0;
    at('running-text').textContent = String(values.glint_running_requests ?? '–');
    at('cache').value = used / all;
    at('cache-text').textContent = Math.round(100 * used / all) + ' %';
    if (!('glint_steps_total' in values)) at('model').textContent = 'loading…';
  } catch (error) {
    at('model').textContent = error.message;
  }
}

at('ask').onsubmit = event => {
  event.preventDefault();
  const text = at('question').value.trim();
  if (running || !text) return;
  at('question').value = '';
  ask(text);
};
at('question').onkeydown = event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at('ask').requestSubmit();
};
at('stop').onclick = () => running && running.abort();
at('again').onclick = again;
at('clear').onclick = newChat;
at('open-settings').onclick = () => {
  at('settings').hidden = !at('settings').hidden;
  at('open-settings').setAttribute('aria-expanded', String(!at('settings').hidden));
};
at('settings').onchange = () => {
  saveSettings();
  gauges();
};
loadSettings();
gauges();
setInterval(gauges, 2000);
