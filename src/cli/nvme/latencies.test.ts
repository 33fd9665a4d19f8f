import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Latencies, picture } from './latencies.js';

test('what was recorded is told in microseconds', () => {
  const latencies = new Latencies();
  assert.equal(latencies.document(), undefined);
  for (let n = 1; n <= 1000; n++) latencies.record(n / 1000);
  const document = latencies.document();
  assert.ok(document !== undefined);
  assert.equal(latencies.count, 1000);
  assert.ok(Math.abs(document.mean - 500.5) < 1, `${document.mean}`);
  assert.ok(Math.abs((document.percentiles.find(({ percent }) => percent === 99)?.within ?? 0) - 990) < 2);
  assert.ok(Math.abs(document.least - 1) < 0.01);
  assert.equal(
    document.histogram.reduce((sum, { commands }) => sum + commands, 0),
    1000,
  );
});

test('the picture has a row for each power of two between the first and the last', () => {
  const latencies = new Latencies();
  for (const us of [1, 1, 1, 1, 9, 5e6]) latencies.record(us / 1000);
  const document = latencies.document();
  assert.ok(document !== undefined);
  const rows = picture(document, 8);
  assert.equal(
    rows.length,
    Math.round(Math.log2(document.histogram.at(-1)?.below ?? 0) - Math.log2(document.histogram[0].below)) + 1,
  );
  assert.match(rows[0], /########/);
  assert.match(rows[0], /66.67 %/);
  assert.ok(rows.every((row) => row.length === rows[0].length));
});

test('impossible times are no reason to stop', () => {
  const latencies = new Latencies();
  for (const ms of [0, -1, 1e12]) latencies.record(ms);
  assert.equal(latencies.count, 3);
});
