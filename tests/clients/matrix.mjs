// What the JavaScript clients' scripts share: the proxies' addresses, the words of the cases, and the rows of the matrix.

import assert from 'node:assert/strict';

/** A proxy that refuses with 200, one that refuses with 403, and one that reads answers and finds each of them harmful. */
export const [ANSWERING, DENYING, CUTTING] = process.argv.slice(2, 5);
export const REFUSAL = "I can't help with that.";
export const TEXT = 'Hello there.';
/** What is left of a streamed answer that is cut. */
export const CUT = 'Hello there,' + REFUSAL;

/** One case came out as expected; `seen` is what the client makes of it. */
export function show(format, client, name, seen) {
  console.log(['case', format, client, name, seen].join('\t'));
}

/** The error of this class that `call` ends with. */
export async function raised(error, call) {
  try {
    await call();
  } catch (e) {
    assert(error.isInstance(e), e);
    return e;
  }
  assert.fail(`${error.name} was not raised`);
}
