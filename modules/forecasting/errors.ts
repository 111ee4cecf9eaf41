import { problem } from '../../plugins/contracts.js'

export const ItemNotFound = problem<{ itemCode: string }>('FORECAST_ITEM_NOT_FOUND', 404, {
  en: 'There is no item {itemCode}.',
  fr: 'L’article {itemCode} n’existe pas.'
})
export const NotTrained = problem<{ itemCode: string; frequency: string }>('FORECAST_NOT_TRAINED', 404, {
  en: 'No forecast has been trained for item {itemCode} (frequency: {frequency}).',
  fr: 'Aucune prévision n’a été calculée pour l’article {itemCode} (fréquence : {frequency}).'
})
export const ModelNotFound = problem<{ modelId: string }>('FORECAST_MODEL_NOT_FOUND', 404, {
  en: 'There is no model {modelId}.',
  fr: 'Le modèle {modelId} n’existe pas.'
})
export const ScopeAmbiguous = problem<{ given: readonly string[] }>('FORECAST_SCOPE_AMBIGUOUS', 400, {
  en: 'Give one of "itemCodes", "top" and "all", not several.',
  fr: 'Donnez un seul de « itemCodes », « top » et « all ».'
})
export const RangeInvalid = problem<{ from: string; to: string }>('FORECAST_RANGE_INVALID', 400, {
  en: 'The range from {from} to {to} ends before it starts.',
  fr: 'La période du {from} au {to} se termine avant son début.'
})
export const OverrideNotFound = problem<{ overrideId: string }>('FORECAST_OVERRIDE_NOT_FOUND', 404, {
  en: 'There is no override {overrideId} of this item.',
  fr: 'La correction {overrideId} de cet article n’existe pas.'
})
export const OverrideFigure = problem<{ given: readonly string[] }>('FORECAST_OVERRIDE_FIGURE', 422, {
  en: 'Give one of "quantityPerDay" and "factor".',
  fr: 'Donnez « quantityPerDay » ou « factor », et un seul des deux.'
})
export const OverrideOver = problem<{ overrideId: string; expiresOn: string }>('FORECAST_OVERRIDE_OVER', 409, {
  en: 'The override {overrideId} ended on {expiresOn}.',
  fr: 'La correction {overrideId} a pris fin le {expiresOn}.'
})
export const FeedbackRule = problem('FORECAST_FEEDBACK_RULE', 422, {
  en: 'Only what was used ("actual") can be exceptional, not a forecast.',
  fr: 'Seule une consommation (« actual ») peut être exceptionnelle, pas une prévision.'
})
export const AggregateUnknown = problem<{ level: string; key: string }>('FORECAST_AGGREGATE_NOT_FOUND', 404, {
  en: 'There is no forecast of the {level} "{key}"; the nightly training makes them.',
  fr: 'Il n’y a pas de prévision pour {level} « {key} » ; l’apprentissage de la nuit les calcule.'
})
export const EventNotFound = problem<{ eventId: string }>('FORECAST_EVENT_NOT_FOUND', 404, {
  en: 'There is no event {eventId}.',
  fr: 'L’événement {eventId} n’existe pas.'
})
export const EventDates = problem<{ given: readonly string[] }>('FORECAST_EVENT_DATES', 422, {
  en: 'Give one of "dates" and "yearly".',
  fr: 'Donnez « dates » ou « yearly », et un seul des deux.'
})
export const EventNever = problem('FORECAST_EVENT_NEVER', 422, {
  en: 'The rule in "yearly" names no day of any year.',
  fr: 'La règle de « yearly » ne désigne aucun jour d’aucune année.'
})
export const RegressorNotFound = problem<{ regressor: string }>('FORECAST_REGRESSOR_NOT_FOUND', 404, {
  en: 'There is no regressor {regressor}.',
  fr: 'Le régresseur {regressor} n’existe pas.'
})
export const RegressorExists = problem<{ name: string }>('FORECAST_REGRESSOR_EXISTS', 409, {
  en: 'There is already a regressor named {name}.',
  fr: 'Un régresseur nommé {name} existe déjà.'
})
export const RegressorIncomplete = problem<{ regressor: string; missingDay: string; neededTo: string }>(
  'FORECAST_REGRESSOR_INCOMPLETE',
  422,
  {
    en: 'The regressor {regressor} has no value for {missingDay}; it must be known for each day to {neededTo}, the end of the forecast.',
    fr: 'Le régresseur {regressor} n’a pas de valeur pour le {missingDay} ; il doit être connu chaque jour jusqu’au {neededTo}, fin de la prévision.'
  }
)
