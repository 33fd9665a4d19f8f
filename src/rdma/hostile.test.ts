/** The short form of the battery of hostile peers of the exchange; `every` 1 tears what they say at every part of a hundred. */
import { test } from 'node:test';
import { attackExchange } from '../../test/hostile/exchange.js';
import { Times } from '../../test/hostile/times.js';
import { openPlatform } from '../platform/open.js';

test(
  'a server of the exchange outlives everything that can be said, torn and in crowds',
  { skip: openPlatform().limitation ?? false },
  async (t) => {
    const times = new Times();
    await attackExchange(50, times);
    for (const line of times.lines(3)) t.diagnostic(line);
  },
);
