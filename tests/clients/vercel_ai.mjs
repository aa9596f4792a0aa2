// What the Vercel AI SDK makes of the proxy: the package `ai` with its providers for OpenAI and Anthropic.

import assert from 'node:assert/strict';

import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { APICallError, generateText, NoObjectGeneratedError, Output, RetryError, streamText, tool } from 'ai';
import { z } from 'zod';

import { ANSWERING, CUT, CUTTING, DENYING, raised, REFUSAL, show, TEXT } from './matrix.mjs';

const openai = url => createOpenAI({ baseURL: `${url}/v1`, apiKey: 'unused' });
const anthropic = url => createAnthropic({ baseURL: `${url}/v1`, apiKey: 'unused' });
const image = [{ type: 'file', data: 'AAAA', mediaType: 'image/png' }];
const look = tool({ description: 'Looks.', inputSchema: z.object({}), execute: () => 'seen' });
const output = Output.object({ schema: z.object({ text: z.string() }) });

/** The text, finish reason, usage and first error of a stream. */
async function read(model, prompt) {
  let error;
  const result = streamText({ model, prompt, maxRetries: 1, onError: event => (error ??= event.error) });
  let text = '';
  for await (const piece of result.textStream) text += piece;
  if (error) throw error;
  return { text, finish: await result.finishReason, raw: await result.rawFinishReason, usage: await result.usage };
}

/** The cases of one format, in which a refusal's own finish reason is `raw`. */
async function format(name, client, model, raw, aside = '') {
  const ask = (url, prompt, more) => generateText({ model: model(url), prompt, maxRetries: 1, maxOutputTokens: 64, ...more });
  const row = (key, seen) => show(name, client, key, seen);

  let answer = await ask(ANSWERING, 'hi');
  assert.deepEqual([answer.text, answer.finishReason, answer.usage.totalTokens], [TEXT, 'stop', 10]);
  row('allowed', '`text`, finish reason `stop`');
  answer = await read(model(ANSWERING), 'hi');
  assert.deepEqual([answer.text, answer.finish, answer.usage.outputTokens], [TEXT, 'stop', 3]);
  row('allowed, streamed', 'text pieces, finish reason `stop`, usage');

  answer = await ask(ANSWERING, 'harm');
  assert.deepEqual([answer.text, answer.finishReason, answer.rawFinishReason], [REFUSAL, 'content-filter', raw]);
  row('refused', `\`text\`, finish reason \`content-filter\`${aside}`);
  answer = await read(model(ANSWERING), 'harm');
  assert.deepEqual([answer.text, answer.finish, answer.raw], [REFUSAL, 'content-filter', raw]);
  row('refused, streamed', 'text pieces, finish reason `content-filter`');
  answer = await ask(ANSWERING, 'harm', { tools: { look } });
  assert.deepEqual([answer.text, answer.toolCalls], [REFUSAL, []]);
  row('refused, with tools', '`text`, no tool calls');
  let error = await raised(NoObjectGeneratedError, async () => (await ask(ANSWERING, 'harm', { output })).output);
  assert.deepEqual([error.text, error.finishReason], [REFUSAL, 'content-filter']);
  row('refused, structured output', '`NoObjectGeneratedError` with text and finish reason `content-filter`');

  for (const [key, call] of [['refused with 403', () => ask(DENYING, 'harm')], ['refused with 403, streamed', () => read(model(DENYING), 'harm')]]) {
    const error = await raised(APICallError, call);
    assert.deepEqual([error.statusCode, error.isRetryable], [403, false]);
    assert(error.message.includes(REFUSAL), error.message);
    row(key, '`APICallError`, status 403, not retried');
  }

  answer = await ask(CUTTING, 'hi');
  assert.deepEqual([answer.text, answer.finishReason, answer.rawFinishReason], [REFUSAL, 'content-filter', raw]);
  row('answer refused', 'as a refused request');
  answer = await read(model(CUTTING), 'hi');
  assert.deepEqual([answer.text, answer.finish, answer.raw], [CUT, 'content-filter', raw]);
  row('answer refused in the middle, streamed', 'text so far and refusal as one text, finish reason `content-filter`');

  error = await raised(APICallError, () => ask(ANSWERING, 'break'));
  assert(error.responseBody.includes('guard_failed'), error.responseBody);
  row('guard fails', '`APICallError`, status 403, not retried');
  error = await raised(APICallError, () => ask(ANSWERING, undefined, { messages: [{ role: 'user', content: image }] }));
  assert(error.responseBody.includes('unreadable_content'), error.responseBody);
  row('unread part', '`APICallError`, status 403, not retried');
  error = await raised(RetryError, () => ask(ANSWERING, 'overload'));
  assert.deepEqual([error.reason, error.lastError.statusCode], ['maxRetriesExceeded', 503]);
  row('guard overloaded', '`RetryError`, the last error an `APICallError` with status 503');
}

await format('openai-chat', '@ai-sdk/openai', url => openai(url).chat('embedded'), 'content_filter');
// A refusal part is text to this client: only the finish reason tells them apart.
const aside = '; the `refusal` part is not told from text';
await format('openai-responses', '@ai-sdk/openai', url => openai(url).responses('embedded'), undefined, aside);
await format('anthropic-messages', '@ai-sdk/anthropic', url => anthropic(url)('embedded'), 'refusal');
console.log('ai: as expected');
