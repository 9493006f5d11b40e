/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/state@0.1.0' {
  export function get(key: string): Uint8Array | undefined;
  export function set(key: string, value: Uint8Array): void;
  export function compareAndSwap(key: string, expected: Uint8Array | undefined, value: Uint8Array): boolean;
  export { _delete as delete };
  function _delete(key: string): void;
  export function keys(prefix: string, limit: number): Array<string>;
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
}
