import assert from 'node:assert/strict';
import { test } from 'node:test';
import { captureOrigin, OriginNotes, placeOf, type Origin } from './origin.js';

function somewhere(): Origin {
  return captureOrigin();
}

function deep(levels: number): Origin {
  return levels === 0 ? captureOrigin() : deep(levels - 1);
}

test('the place that made something', () => {
  assert.match(placeOf(somewhere()), /^somewhere \(.*origin\.test\.js:\d+:\d+\)$/);
  assert.match(placeOf(deep(30)), /^deep /);
  assert.equal(placeOf(undefined), 'an unknown place');
  assert.equal(placeOf({}), 'an unknown place');
});

test('capturing leaves the settings of Error as they are', () => {
  const before = Error.stackTraceLimit;
  try {
    for (const limit of [0, 1, 50]) {
      Error.stackTraceLimit = limit;
      assert.match(placeOf(somewhere()), /^somewhere /);
      assert.equal(Error.stackTraceLimit, limit);
    }
  } finally {
    Error.stackTraceLimit = before;
  }
});

test('the innermost place outside of the library and of node', () => {
  const library = new URL('.', import.meta.url).href;
  const stack = [
    'Error',
    `    at Domain.map (${library}dma/domain.js:1:1)`,
    `    at async Device.dmaMap (${library}bus/device.js:2:2)`,
    '    at node:internal/process/task_queues:95:5',
    '    at process.processImmediate (node:internal/timers:476:21)',
    '    at main (file:///app/main.js:3:7)',
    '    at other (file:///app/other.js:4:8)',
  ];
  assert.equal(placeOf({ stack: stack.join('\n') }), 'main (file:///app/main.js:3:7)');
  assert.equal(placeOf({ stack: stack.slice(0, 5).join('\n') }), `Domain.map (${library}dma/domain.js:1:1)`);
});

test('some places are noted by default: the first thousand, then one in 64', () => {
  const noted = (all: boolean | undefined, count: number): number[] => {
    const notes = new OriginNotes(all);
    return Array.from({ length: count }, (_, i) => (notes.note(noted) === undefined ? -1 : i)).filter((i) => i >= 0);
  };
  assert.deepEqual(noted(undefined, 1200).slice(998), [998, 999, 1024, 1088, 1152]);
  assert.equal(noted(true, 1200).length, 1200);
  assert.deepEqual(noted(false, 1200), []);
});
