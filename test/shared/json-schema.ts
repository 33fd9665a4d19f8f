/** Documents of the command, checked against docs/json.schema.json. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

/** What is used of ajv, which is loaded when it is first needed: most tests of the command print no documents. */
interface Ajv {
  compile(schema: object): ((value: unknown) => boolean) & { readonly errors?: unknown };
}

const SCHEMA = new URL('../../../docs/json.schema.json', import.meta.url);

type Schema = Record<string, unknown> & { readonly $defs: Record<string, Schema> };

/** Is ajv installed? Packages that were installed before it was needed do not have it; then nothing is checked. */
export const canCheck: boolean = (() => {
  try {
    createRequire(import.meta.url).resolve('ajv/dist/2020.js');
    return true;
  } catch {
    return false;
  }
})();

let validators: Map<string, ReturnType<Ajv['compile']>> | undefined;

/** @throws AssertionError unless it is the document that its field `schema` names, or that of a failure, and has no other fields */
export function checkDocument(document: unknown): void {
  if (!canCheck) return;
  assert.ok(typeof document === 'object' && document !== null);
  const { schema, ok, error } = document as Record<string, unknown>;
  const [name, version] = String(schema).split('/');
  assert.equal(version, '1', `the document has the schema ${String(schema)}`);
  validators ??= load();
  const validate = validators.get(ok === false && error !== undefined ? 'failure' : name);
  assert.ok(validate !== undefined, `docs/json.schema.json has no ${name}`);
  assert.ok(validate(document), JSON.stringify(validate.errors, undefined, 2));
}

function load(): NonNullable<typeof validators> {
  const { Ajv2020 } = createRequire(import.meta.url)('ajv/dist/2020.js') as { Ajv2020: new (options: object) => Ajv };
  const schema = JSON.parse(readFileSync(SCHEMA, 'utf8')) as Schema;
  const ajv = new Ajv2020({ strict: true, allErrors: true });
  const { $defs } = closed(schema) as Schema;
  return new Map(Object.keys($defs).map((name) => [name, ajv.compile({ $ref: `#/$defs/${name}`, $defs })]));
}

/** The same, without fields that it does not name: readers have to ignore those, but the tests find them. */
function closed(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closed);
  if (typeof schema !== 'object' || schema === null) return schema;
  const inner = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]));
  return inner['type'] === 'object' ? { ...inner, additionalProperties: false } : inner;
}
